"""A folder of pictures with a `metadata.jsonl`: the simplest way to bring one's own captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers.utils import logging

from hf_distinct.data.table import CaptionTable, parse_json, take, take_id

logger = logging.get_logger(__name__)

METADATA_FILE = "metadata.jsonl"
KNOWN_KEYS = {"file_name", "captions", "image_id", "split"}


def load_image_folder(folder: str | os.PathLike[str], strict: bool = False) -> DatasetDict:
    r"""Load a folder of pictures whose `metadata.jsonl` holds one JSON object a line.

    Example:
        `{"file_name": "dogs/rex.jpg", "captions": ["A dog runs on a beach.", "A brown dog by the sea."]}`

    Args:
        folder: It holds `metadata.jsonl`. In each line: `file_name`, relative to the folder; `captions`, a list or a
            single text; optionally `image_id` (by default `file_name`) and `split` (train, validation or val, test; by
            default train). Other keys are ignored with a warning; blank lines are allowed.
        strict: Whether a missing image, an empty or overlong caption or an image without captions is an error.

    Returns:
        The splits that the lines name; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: The folder has no `metadata.jsonl`.
        ValueError: A broken line (named by its number), an id used twice, or no usable image; (strict) any skip.
    """
    path = Path(folder) / METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"The image folder {str(folder)!r} has no {METADATA_FILE}.")
    table = CaptionTable(path, strict)
    ignored: set[str] = set()
    # Bytes, split at "\n" only: str.splitlines would also split at characters that JSON allows inside a text.
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_json(line, where)
        file_name = take(record, "file_name", str, where)
        image_id = take_id(record, "image_id" if "image_id" in record else "file_name", where)
        split = take(record, "split", str, where) if "split" in record else "train"
        split = "validation" if split == "val" else split
        table.add(image_id, path.parent / file_name, _captions(record, where), split, where)
        ignored |= set(record) - KNOWN_KEYS
    if ignored:
        logger.warning(f"{path}: ignored the keys {sorted(ignored)}; known are {sorted(KNOWN_KEYS)}.")
    return table.finish()


def _captions(record: Any, where: str) -> list[str]:
    captions = take(record, "captions", (list, str), where)
    captions = [captions] if isinstance(captions, str) else captions
    for index, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise ValueError(f"{where}: captions[{index}] should be text, found {type(caption).__name__}.")
    return captions
