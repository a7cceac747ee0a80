"""Merge rows with the same image: a dataset with one row per caption contains each image several times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image

from hf_distinct.data.skips import Skips

TAIL = 256


def find_repeats(images: Sequence[Dataset]) -> list[int]:
    """Find rows that repeat an image: the same bytes, or the same path if there are no bytes.

    Only the size and the last bytes of an image are read; the whole image is only read if these are equal to
    another's.

    Args:
        images: datasets with a column `image`, whose rows are numbered consecutively.

    Returns:
        For each row the first row with the same image. Rows without an image return themselves.
    """
    encoded = [rows.select_columns(["image"]).cast_column("image", Image(decode=False)) for rows in images]
    marks = np.fromiter((mark for rows in encoded for mark in _marks(rows)), dtype=np.int64)
    first = list(range(len(marks)))
    _, place, counts = np.unique(marks, return_inverse=True, return_counts=True)
    alike = counts[place] > 1
    seen: dict[bytes, int] = {}
    begin = 0
    for rows in encoded:
        chosen = np.flatnonzero(alike[begin : begin + len(rows)])
        candidates = rows if len(chosen) == len(rows) else rows.select(chosen)
        for row, picture in zip((chosen + begin).tolist(), _pictures(candidates), strict=True):
            if picture is not None:
                first[row] = seen.setdefault(hashlib.blake2b(picture, digest_size=16).digest(), row)
        begin += len(rows)
    return first


def gather_captions(
    captions: list[list[str]], image_ids: Sequence[str], splits: Sequence[str], first: Sequence[int], skips: Skips
) -> dict[int, int]:
    """Move the captions of rows that repeat an image to its first row in the same split, in place.

    Args:
        captions: captions of each row; a row without captions is ignored. Repeating rows end up without captions.
        image_ids: image id of each row, for messages.
        splits: split of each row.
        first: from `find_repeats`.
        skips: records repeated captions, images in two splits, and ids of several images.

    Returns:
        For each row that repeats an image, the row that has its captions now.
    """
    moved: dict[int, int] = {}
    own: dict[tuple[int, str], int] = {}
    split_of: dict[int, str] = {}
    picture_of: dict[tuple[str, str], int] = {}
    for row, texts in enumerate(captions):
        if not texts:
            continue
        picture, split = first[row], splits[row]
        target = own.setdefault((picture, split), row)
        if split_of.setdefault(picture, split) != split and target == row:
            skips.note(f"image of {split} that is also in {split_of[picture]}", image_ids[row])
        if target == row:
            if picture_of.setdefault((image_ids[row], split), picture) != picture:
                skips.note("image id of several images", image_ids[row])
            continue
        new = [text for text in texts if text not in captions[target]]
        if len(new) < len(texts):
            skips.note("repeated caption of image", image_ids[target])
        captions[target] = captions[target] + new
        captions[row] = []
        moved[row] = target
    return moved


def differing_columns(rows: Dataset, names: Sequence[str], moved: dict[int, int]) -> list[str]:
    """Return the columns in which rows differ from the first row of their image: these describe captions."""
    if not moved:
        return []
    columns = {name: rows.select_columns([name]).with_format("arrow")[:][name].to_pylist() for name in names}
    return [name for name, values in columns.items() if any(values[row] != values[to] for row, to in moved.items())]


def _encoded(rows: Dataset) -> Iterator[tuple[Any, Any]]:
    """Yield bytes and paths as Arrow arrays, a thousand rows at a time."""
    for table in rows.with_format("arrow").iter(batch_size=1000):
        images = table["image"].combine_chunks()
        yield pc.struct_field(images, "bytes"), pc.struct_field(images, "path")


def _marks(rows: Dataset) -> Iterator[int]:
    for contents, paths in _encoded(rows):
        tails = pc.binary_slice(contents.cast(pa.large_binary()), -TAIL, None).to_pylist()
        sizes = pc.binary_length(contents).to_pylist()
        for size, tail, path in zip(sizes, tails, paths.to_pylist(), strict=True):
            yield hash(path if size is None else (size, tail))


def _pictures(rows: Dataset) -> Iterator[bytes | None]:
    """Yield the identity of each row's image: a letter, and bytes or path."""
    for contents, paths in _encoded(rows):
        for content, path in zip(contents, paths, strict=True):
            if content.is_valid:
                yield b"b" + content.as_py()
            else:
                yield b"p" + path.as_py().encode("utf-8", "surrogatepass") if path.is_valid else None
