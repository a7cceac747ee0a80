"""Captions as COCO's evaluation server exchanges them: results of a system, and references without their pictures."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils import logging

from hf_distinct.data.skips import Skips
from hf_distinct.data.table import read_json, take, take_id
from hf_distinct.data.texts import is_missing
from hf_distinct.files.parts import written_whole
from hf_distinct.text.limits import MAX_CAPTION_CHARACTERS

logger = logging.get_logger(__name__)


def read_coco_results(json_path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a results file: `[{"image_id": 42, "caption": "a dog"}, ...]`.

    Returns:
        The caption of each image by its id as text, in the order of the file. One that is null or NaN is empty, with a
        warning that counts and names them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such list, an image has two captions, or a caption has more than
            `MAX_CAPTION_CHARACTERS`; the message names file and row.
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
            raise ValueError(f"{where}: image {image_id} has a caption already; give one caption for each image.")
        found[image_id] = _caption(row, image_id, where, skips) or ""
    skips.warn()
    return found


def match_image_ids(captions: Mapping[str, str], image_ids: Sequence[str], source: str) -> dict[str, str]:
    """Bring captions under the image ids of a test set, which may write them otherwise.

    An id that the test set does not have may be the name of a picture's file: `COCO_val2014_000000000042.jpg` and
    `val2014/000000000042.jpg` are image 42, `1000268201_693b08cb0e` is `1000268201_693b08cb0e.jpg`.

    Args:
        captions: One of each image, by id.
        image_ids: Those of the test set.
        source: Where the captions are from, for messages.

    Returns:
        The captions of images of the test set, by its ids. Those of other images are left out, with a warning that
        names some.

    Raises:
        ValueError: Not one image is of the test set, or two captions are of the same.
    """
    known, keys = set(image_ids), Counter(map(_key, image_ids))
    by_key = {_key(image_id): image_id for image_id in image_ids if keys[_key(image_id)] == 1}
    found: dict[str, str] = {}
    unknown = []
    given: dict[str, str] = {}
    for own_id, caption in captions.items():
        image_id = own_id if own_id in known else by_key.get(_key(own_id))
        if image_id is None:
            unknown.append(own_id)
        elif image_id in found:
            raise ValueError(f"{source}: {given[image_id]} and {own_id} are both image {image_id}; give one caption.")
        else:
            found[image_id], given[image_id] = caption, own_id
    some = f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}"
    if not found:
        raise ValueError(
            f"{source}: none of its {len(unknown)} images is among the {len(known)} of the test set. Its image ids "
            f"are {some}; those of the test set are {', '.join(image_ids[:3])}, ..."
        )
    if unknown:
        logger.warning(
            f"{source}: {len(unknown)} captions of images that are not in the test set are left out: {some}"
        )
    return found


def _key(image_id: str) -> str:
    """What an id has in common with the names of the picture's file."""
    stem = re.sub(r"\.[A-Za-z]\w{2,3}$", "", PurePosixPath(image_id.replace("\\", "/")).name)
    number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", stem)
    return number[1] if number else stem


def read_coco_references(json_path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read a captions file: `{"annotations": [{"image_id": 42, "caption": "a dog"}, ...]}`.

    Returns:
        The references of each image by its id as text, in the order in which the images first occur. Empty captions
        stay, as in the field's evaluation; those that are null or NaN are left out, with a warning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or a caption has more than `MAX_CAPTION_CHARACTERS`; the message names file
            and row.
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
    caption = take(row, "caption", str, where)
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise ValueError(
            f"{where}: the caption of image {image_id} has {len(caption)} characters, and at most "
            f"{MAX_CAPTION_CHARACTERS} are allowed. Shorten it, or leave the image out."
        )
    return caption


def write_coco_results(json_path: str | os.PathLike[str], image_ids: Sequence[str], captions: Sequence[str]) -> None:
    """Write a results file, whole or not at all; an id that is a whole number is written as one, as COCO's own are."""
    rows = [
        {
            "image_id": int(image_id) if image_id.isdecimal() and str(int(image_id)) == image_id else image_id,
            "caption": caption,
        }
        for image_id, caption in zip(image_ids, captions, strict=True)
    ]
    with written_whole(Path(json_path)) as temporary:
        temporary.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
