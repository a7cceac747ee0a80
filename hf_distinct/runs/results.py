"""Results of a recipe: each file is written completely or not at all, and never replaces a file of the user."""

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
"""The file that lists the results that recipes wrote to a folder, with their digests."""


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Write a value as JSON, with null for NaN and infinities; see `write_text`."""
    plain = json.loads(json.dumps(value), parse_constant=lambda name: None)
    write_text(path, json.dumps(plain, indent=indent) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all; under another name if `own_files` finds a file of the user."""
    with own_files(path.parent, path.name) as (own,), written_whole(own) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def own_files(folder: Path, *names: str) -> Iterator[list[Path]]:
    """Choose the paths of results so that no file of the user is overwritten, and record what is written inside.

    A file is a recipe's own as long as its bytes are those that the recipe wrote. If a ``captions.json`` was edited or
    made by the user, the result is written to ``captions.1.json``, or the next free number, and a warning says so.

    Args:
        folder: the folder of the results; it is created if it is missing.
        names: their paths in the folder.

    Yields:
        The path to write each of them to.
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
    """The path of a result, or the first numbered one that is free or a recipe's own."""
    path = folder / name
    numbered = (path.with_suffix(f".{number}{path.suffix}") for number in count(1))
    for each in chain([path], numbered):
        if not os.path.lexists(each) or (
            each.is_file() and record.get(each.relative_to(folder).as_posix()) == digest(each)
        ):
            break
    if each != path:
        logger.warning("%s is not as a recipe wrote it, so it is kept. The new file is %s.", path, each.name)
    return each


def _record(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def or_warn(what: str) -> Iterator[None]:
    """Turn an error into a warning that names it, around a result that is not essential, such as a sheet."""
    try:
        yield
    except Exception as error:  # whatever it is, the essential results are written
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        logger.warning("%s could not be made: %s. The other results are complete.", what, reason)
        logger.debug("where it happened", exc_info=True)


def output_problems(output_dir: str | os.PathLike[str], sources: Mapping[str, str | None]) -> Iterator[str]:
    """A sentence for each model that a run would overwrite, because it reads it from its output folder.

    Args:
        output_dir: the folder that the run writes to.
        sources: the models that it reads, by the name of the setting: folders, ids, or None.
    """
    for name, source in sources.items():
        if source and os.path.realpath(shipped_or_named(source)) == os.path.realpath(output_dir):
            yield (
                f"--{name} and --output_dir are both {source}, so the run would overwrite this model: set another "
                "--output_dir."
            )
