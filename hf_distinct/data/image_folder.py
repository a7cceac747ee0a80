"""A folder of pictures with a `metadata.jsonl`: the simplest way to bring one's own captions."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers.utils import logging

from hf_distinct.data.table import CaptionTable, parse_json, split_named, take, take_id

logger = logging.get_logger(__name__)

METADATA_FILE = "metadata.jsonl"
METADATA_TABLE = "metadata.csv"
KNOWN_KEYS = {"file_name", "image_id", "split"}


def load_image_folder(
    folder: str | os.PathLike[str], strict: bool = False, caption_column: str | None = None
) -> DatasetDict:
    r"""Load a folder of pictures with a `metadata.jsonl` (one JSON object a line) or a `metadata.csv`.

    As `datasets` has it, the folder may also hold `train/`, `validation/` (or `val/`) and `test/`, each with pictures
    and such a file of its own.

    Example:
        `{"file_name": "dogs/rex.jpg", "captions": ["A dog runs on a beach.", "A brown dog by the sea."]}`

    Args:
        folder: It holds the file. In each line: `file_name`, relative to the folder; `captions`, a list or a single
            text; optionally `image_id` (by default `file_name`) and `split` (train, validation or val, test; by
            default train, or what the folder is named). Other keys are ignored with a warning; blank lines are
            allowed. A table has a single caption in each of its rows; rows of the same file are one image.
        strict: Whether a missing image, an empty or overlong caption or an image without captions is an error.
        caption_column: The key of the captions if it is not `captions` ("text" is usual for `datasets`).

    Returns:
        The splits that the lines name; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: The folder has no such file.
        ValueError: A broken line (named by its number), an id used twice, or no usable image; (strict) any skip.
    """
    files = find_metadata(folder)
    if not files:
        raise FileNotFoundError(f"The image folder {str(folder)!r} has no {METADATA_FILE} and no {METADATA_TABLE}.")
    column = caption_column or "captions"
    table = CaptionTable(files[0] if len(files) == 1 else folder, strict)
    ignored: set[str] = set()
    for path in files:
        default = split_named(path.parent.name) if path.parent != Path(folder) else "train"
        for number, record in _records(path):
            where = f"{path}, line {number}"
            file = path.parent / take(record, "file_name", str, where)
            name = take_id(record, "image_id" if "image_id" in record else "file_name", where)
            if "image_id" not in record and path.parent != Path(folder):
                name = f"{path.parent.name}/{name}"
            split = take(record, "split", str, where) if "split" in record else default or "train"
            known = "validation" if split == "val" else split
            table.add(name, file, _captions(record, column, where), known, where)
            ignored |= set(record) - KNOWN_KEYS - {column}
    if ignored:
        known_keys = sorted(KNOWN_KEYS | {column})
        logger.warning(f"{table.skips.source}: ignored the keys {sorted(ignored)}; known are {known_keys}.")
    return table.finish()


def find_metadata(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the metadata file of a folder, or those of its subfolders that are named like splits."""
    subfolders = [each for each in sorted(Path(folder).glob("*/")) if split_named(each.name)]
    for places in ([Path(folder)], subfolders):
        names = (METADATA_FILE, METADATA_TABLE)
        if files := [place / name for place in places for name in names if (place / name).is_file()]:
            return files
    return []


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line and what it holds."""
    if path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            for row in rows:
                yield (
                    rows.line_num,
                    {key: value for key, value in row.items() if key is not None and value is not None},
                )
        return
    # Bytes, split at "\n" only: str.splitlines would also split at characters that JSON allows inside a text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")


def _captions(record: Any, column: str, where: str) -> list[str]:
    captions = take(record, column, (list, str), where)
    captions = [captions] if isinstance(captions, str) else captions
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"{where}: {column}[{index}] should be text, found {type(caption).__name__}.")
    return captions
