"""Results of a recipe: each file is whole or not there, and takes the place of no file that somebody else wrote."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

from hf_distinct.files.model_names import shipped_or_named
from hf_distinct.files.parts import written_whole
from hf_distinct.files.seals import digest

logger = logging.getLogger(__name__)

RECORD = ".hf_distinct.json"
"""Names the results that hf_distinct wrote into a folder, with their digests."""


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a value as JSON, with null for NaN and infinities, which JSON does not know; see `write_text`."""
    plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_text(path, json.dumps(plain, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all; under another name if `own_files` finds somebody else's in its place."""
    with own_files(path.parent, path.name) as (own,), written_whole(own) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def own_files(folder: Path, *names: str) -> Iterator[list[Path]]:
    """Around the writing of results: a file that a recipe did not write is never overwritten.

    A file counts as a recipe's while its bytes are those that a recipe left, so not after somebody edited it. Beside
    somebody's ``captions.json`` the result is written as ``captions.1.json``, or with the first number that is free,
    and a warning says so.

    Args:
        folder: where the results go; it is made where it is missing.
        names: their paths in the folder.

    Yields:
        Where to write each of them.
    """
    record = _record(folder)
    paths = [_free(folder, name, record) for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    yield paths
    written = {path.relative_to(folder).as_posix(): digest(path) for path in paths if path.is_file()}
    with written_whole(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(_record(folder) | written, indent=1) + "\n", encoding="utf-8")


def _free(folder: Path, name: str, record: dict[str, str]) -> Path:
    """The path of a result, or the first numbered one that is free or a recipe's."""
    path = folder / name
    numbered = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    for each in chain([path], numbered):
        if not os.path.lexists(each) or (
            each.is_file() and record.get(each.relative_to(folder).as_posix()) == digest(each)
        ):
            break
    if each != path:
        logger.warning("%s is not what a recipe wrote. It stays, and the new file is %s.", path, each.name)
    return each


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
