"""The shared end of every source: rows of (id, file, captions, split) are checked here and become a DatasetDict."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, Value

from hf_distinct.data.skips import Skips

SPLITS = ("train", "validation", "test")
# "restval": the COCO validation images outside Karpathy's 5,000 + 5,000; everyone trains on them.
SPLIT_NAMES = {
    "train": "train", "restval": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip
# A caption longer than this is a pasted article, not a caption: CLIP reads 77 tokens, about 300 characters.
MAX_CAPTION_CHARACTERS = 1000


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Args:
        path: The file, in UTF-8 with or without a byte order mark.

    Returns:
        The decoded document.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON; the message names the file and the place.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no caption file {str(path)!r}.")
    return parse_json(Path(path).read_bytes(), str(path))


def parse_json(content: bytes, where: str) -> Any:
    """Decode JSON, or raise a ValueError that begins with `where`."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise ValueError(f"{where}: this is not JSON in UTF-8: {error or type(error).__name__}") from error


def take(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Take a field of a decoded JSON object and check its type.

    Args:
        record: What should be an object.
        key: The field.
        kind: Type or types it may have; `int` does not admit booleans.
        where: File and place, as the message begins.

    Returns:
        The field's value.

    Raises:
        ValueError: `record` is no object, lacks the field, or the field has another type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join({str: "text", int: "an integer", list: "a list", dict: "an object"}[each] for each in kinds)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with {key!r}, found {type(record).__name__}.")
    if key not in record:
        raise ValueError(f"{where}: {key!r} ({expected}) is missing; found the keys {sorted(record)}.")
    value = record[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{where}: {key!r} should be {expected}, found {type(value).__name__}: {str(value)[:60]!r}.")
    return value


def take_id(record: Any, key: str, where: str) -> str:
    """Take an id (text or integer) as text; raises ValueError as `take`, and on empty or undecodable text."""
    identifier = str(take(record, key, (str, int), where))
    if not identifier.strip() or not _is_storable(identifier):
        raise ValueError(f"{where}: {key!r} should be an id, found {identifier!r}.")
    return identifier


def _is_storable(text: str) -> bool:
    # JSON may hold half of a surrogate pair ("\ud83d"), which no UTF-8 column can store.
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass
class _Row:
    image_id: str
    file: str
    captions: list[str]
    split: str
    where: str


class CaptionTable:
    """Gathers rows from a source, then checks files and captions and builds the splits.

    Args:
        source: The file that is read, as the messages name it.
        strict: Whether a skip is an error.
    """

    def __init__(self, source: str | os.PathLike[str], strict: bool = False) -> None:
        self.skips = Skips(str(source), strict)
        self._rows: dict[str, _Row] = {}

    def add(
        self, image_id: str, file: str | os.PathLike[str], captions: Sequence[str], split: str, where: str
    ) -> None:
        """Add a row; a second row of the same id, file and split brings its new captions to the first.

        Args:
            image_id: The image's id, unique over all splits.
            file: The picture's path.
            captions: Its captions, not yet cleaned.
            split: "train", "validation" or "test".
            where: Place in the source (line, index), for messages.

        Raises:
            ValueError: Unknown split, or the id stands at another file or in another split already.
        """
        if split not in SPLITS:
            raise ValueError(f"{where}: unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
        file = os.path.abspath(file)
        first = self._rows.get(image_id)
        if first is None:
            self._rows[image_id] = _Row(image_id, file, list(captions), split, where)
        elif (first.file, first.split) == (file, split):
            first.captions.extend(caption for caption in captions if caption not in first.captions)
        else:
            raise ValueError(
                f"{self.skips.source}: image id {image_id!r} stands twice: {first.where} ({first.file!r}, "
                f"{first.split}) and {where} ({file!r}, {split}). Give each image an id of its own, in one split."
            )

    def finish(self) -> DatasetDict:
        """Clean the captions, look for the files, and build the splits that hold at least one row.

        Captions are stripped; empty ones and those over `MAX_CAPTION_CHARACTERS` are skipped, and so are images
        without a caption left and images whose file is missing. All skips are told in one warning.

        Returns:
            `DatasetDict` with columns `image` (files stay encoded on disk until read), `captions` and `image_id`.

        Raises:
            ValueError: No row is left, or (strict) anything was skipped.
        """
        rows = [row for row in self._rows.values() if self._is_usable(row)]
        for split in SPLITS:
            if any(row.split == split for row in self._rows.values()) and all(row.split != split for row in rows):
                self.skips.add("split without any usable image", split)
        if not rows:
            if not self._rows:
                raise ValueError(f"{self.skips.source}: there are no images in it.")
            raise ValueError(
                f"{self.skips.source}: none of the {len(self._rows)} images is usable: {self.skips.summary()}. "
                "If files are missing: is the image folder the right one?"
            )
        self.skips.warn()
        by_split = {split: [row for row in rows if row.split == split] for split in SPLITS}
        return DatasetDict({split: _to_dataset(members) for split, members in by_split.items() if members})

    def _is_usable(self, row: _Row) -> bool:
        if not os.path.isfile(row.file):
            self.skips.add("missing image file", row.file)
            return False
        row.captions = clean_captions(row.captions, row.image_id, self.skips)
        return bool(row.captions)


def clean_captions(captions: Sequence[str | None], image_id: str, skips: Skips) -> list[str]:
    """Return the captions that can be used, stripped.

    Args:
        captions: Of one image.
        image_id: Its id, by which the others are named.
        skips: Where the others are noted: empty ones, those over `MAX_CAPTION_CHARACTERS`, those that cannot be
            stored, and the image itself if none is left.
    """
    cleaned = []
    for caption in captions:
        # CLIP reads captions without their final full stop, so a lone full stop is empty as well.
        if caption is None or not caption.strip().rstrip(".").strip():
            skips.add("empty caption of image", image_id)
        elif len(caption.strip()) > MAX_CAPTION_CHARACTERS:
            skips.add(f"caption over {MAX_CAPTION_CHARACTERS} characters of image", image_id)
        elif not _is_storable(caption):
            skips.add("caption with a broken character (lone surrogate) of image", image_id)
        else:
            cleaned.append(caption.strip())
    if not cleaned:
        skips.add("image without a caption", image_id)
    return cleaned


def caption_features() -> Features:
    """Return the columns that every source ends in."""
    return Features({"image": Image(), "captions": [Value("string")], "image_id": Value("string")})


def split_named(name: str) -> str | None:
    """Return which of train, validation and test a source means by its name for a split; None if unknown."""
    return SPLIT_NAMES.get(name.lower())


def _to_dataset(rows: list[_Row]) -> Dataset:
    columns = {
        "image": [row.file for row in rows],
        "captions": [row.captions for row in rows],
        "image_id": [row.image_id for row in rows],
    }
    return Dataset.from_dict(columns, features=caption_features())
