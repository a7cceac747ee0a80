"""Files of COCO's evaluation server: a system's captions, and references without images."""

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
        The caption of each image by its id as text, in the order of the file. A null or NaN caption becomes empty,
        with a warning that counts and names these.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not such a list, an image has two captions, or a caption has more than
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
            raise ValueError(f"{where}: image {image_id} already has a caption; give one caption per image.")
        found[image_id] = _caption(row, image_id, where, skips) or ""
    skips.warn()
    return found


def match_image_ids(captions: Mapping[str, str], image_ids: Sequence[str], source: str) -> dict[str, str]:
    """Map captions to the image ids of a test set, which may be written differently.

    An id that the test set does not have may be the name of the image file: `COCO_val2014_000000000042.jpg` and
    `val2014/000000000042.jpg` are image 42, `1000268201_693b08cb0e` is `1000268201_693b08cb0e.jpg`.

    Args:
        captions: one per image, by id.
        image_ids: the ids in the test set.
        source: origin of the captions, for messages.

    Returns:
        The captions of the test set's images, by its ids. Captions of other images are dropped, with a warning that
        names some.

    Raises:
        ValueError: no image is in the test set, or two captions belong to the same image.
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
            f"{source}: {len(unknown)} captions of images that are not in the test set are skipped: {some}"
        )
    return found


def _key(image_id: str) -> str:
    """Reduce an id to the part that it shares with the image's file names."""
    stem = re.sub(r"\.[A-Za-z]\w{2,3}$", "", PurePosixPath(image_id.replace("\\", "/")).name)
    number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", stem)
    return number[1] if number else stem


def read_coco_references(json_path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read a captions file: `{"annotations": [{"image_id": 42, "caption": "a dog"}, ...]}`.

    Returns:
        The references of each image by its id as text, in the order in which images first occur. Empty captions are
        kept, as in the COCO evaluation; null and NaN are dropped, with a warning.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it has another format, or a caption has more than `MAX_CAPTION_CHARACTERS`; the message names file
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
            f"{where}: the caption of image {image_id} has {len(caption)} characters, but at most "
            f"{MAX_CAPTION_CHARACTERS} are allowed. Shorten it, or remove the image."
        )
    return caption


def write_coco_results(json_path: str | os.PathLike[str], image_ids: Sequence[str], captions: Sequence[str]) -> None:
    """Write a results file, completely or not at all. Integer ids are written as integers, as in COCO's files."""
    rows = [
        {
            "image_id": int(image_id) if image_id.isdecimal() and str(int(image_id)) == image_id else image_id,
            "caption": caption,
        }
        for image_id, caption in zip(image_ids, captions, strict=True)
    ]
    with written_whole(Path(json_path)) as temporary:
        temporary.write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")
