"""Captions as COCO's evaluation server exchanges them: results of a system, and references without their pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from hf_distinct.data.skips import Skips
from hf_distinct.data.table import read_json, take, take_id
from hf_distinct.data.texts import is_missing


def read_coco_results(json_path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a results file: `[{"image_id": 42, "caption": "a dog"}, ...]`.

    Returns:
        The caption of each image by its id as text, in the order of the file. One that is null or NaN is empty, with a
        warning that counts and names them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, or an image has two captions; the message names file and row.
    """
    rows = read_json(json_path)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f'{json_path}: expected a list of {{"image_id", "caption"}}, found {type(rows).__name__}.')
    found: dict[str, str] = {}
    skips = Skips(str(json_path))
    for index, row in enumerate(rows):
        where = f"{json_path}: row {index}"
        image_id = take_id(row, "image_id", where)
        if image_id in found:
            raise ValueError(f"{where}: image {image_id} has a caption already; give one an image.")
        found[image_id] = _caption(row, image_id, where, skips) or ""
    skips.warn()
    return found


def read_coco_references(json_path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read a captions file: `{"annotations": [{"image_id": 42, "caption": "a dog"}, ...]}`.

    Returns:
        The references of each image by its id as text, in the order in which the images first occur. Empty captions
        stay, as in the field's evaluation; those that are null or NaN are left out, with a warning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form; the message names file and row.
    """
    found: dict[str, list[str]] = {}
    skips = Skips(str(json_path))
    for index, row in enumerate(take(read_json(json_path), "annotations", list, str(json_path))):
        where = f"{json_path}: annotations[{index}]"
        image_id = take_id(row, "image_id", where)
        if (caption := _caption(row, image_id, where, skips)) is not None:
            found.setdefault(image_id, []).append(caption)
    if not found:
        raise ValueError(f"{json_path}: there are no annotations{' with a caption' if skips.names else ''}.")
    skips.warn()
    return found


def _caption(row: Any, image_id: str, where: str, skips: Skips) -> str | None:
    if isinstance(row, dict) and "caption" in row and is_missing(row["caption"]):
        skips.add("missing caption (null or NaN) of image", image_id)
        return None
    return take(row, "caption", str, where)


def write_coco_results(json_path: str | os.PathLike[str], image_ids: Sequence[str], captions: Sequence[str]) -> None:
    """Write a results file; an id that is a whole number is written as one, as COCO's own are."""
    rows = [
        {
            "image_id": int(image_id) if image_id.isdecimal() and str(int(image_id)) == image_id else image_id,
            "caption": caption,
        }
        for image_id, caption in zip(image_ids, captions, strict=True)
    ]
    with open(json_path, "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=0)
        file.write("\n")
