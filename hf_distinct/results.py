"""Results of a recipe: each file is whole or not there, and takes the place of no file that somebody else wrote."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from hf_distinct.data.parts import written_whole
from hf_distinct.names import shipped_or_named
from hf_distinct.seals import digest

logger = logging.getLogger(__name__)

RECORD = ".hf_distinct.json"
"""Names the results that hf_distinct wrote into a folder, with their digests."""


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a value as JSON, with null for NaN and infinities, which JSON does not know; see `write_text`."""
    plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_text(path, json.dumps(plain, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; what lies in its place is kept as `own_files` says."""
    with own_files(path.parent, path.name), written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def own_files(folder: Path, *names: str) -> Iterator[None]:
    """Around the writing of results. A file in their place stays under another name if hf_distinct did not write it.

    A file counts as written by hf_distinct while its bytes are those that an earlier run left, so one that somebody
    edited is kept, too. ``captions.json`` is kept as ``captions.1.json``, or under the first number that is free.

    Args:
        folder: where the results go.
        names: their paths in the folder.
    """
    record = _record(folder)
    for name in names:
        path = folder / name
        if path.is_file() and record.get(name) != digest(path):
            other = next(each for n in count(1) if not (each := path.with_suffix(f".{n}{path.suffix}")).exists())
            path.rename(other)
            logger.info("%s is not from an earlier run of a recipe, and is kept as %s.", path, other.name)
    yield
    record = _record(folder)
    record |= {name: digest(folder / name) for name in names if (folder / name).is_file()}
    with written_whole(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _record(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def or_warn(what: str) -> Iterator[None]:
    """Around what a finished run can do without, such as a sheet: an error becomes a warning that names it."""
    try:
        yield
    except Exception as error:  # whatever it is, the results are there
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.warning("%s could not be made: %s. The other results are complete.", what, reason)
        logger.debug("where it happened", exc_info=True)


def output_problems(output_dir: str | os.PathLike[str], sources: Mapping[str, str | None]) -> Iterator[str]:
    """A sentence for each model that a run would read from the folder that it writes to, and so overwrite.

    Args:
        output_dir: where the run writes.
        sources: the models that it reads, by the name of the setting: folders, ids, or None.
    """
    for name, source in sources.items():
        if source and os.path.realpath(shipped_or_named(source)) == os.path.realpath(output_dir):
            yield (
                f"--{name} and --output_dir are both {source}: the model there would be overwritten. Set another "
                "--output_dir."
            )
