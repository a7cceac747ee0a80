"""Merge rows with the same image: a dataset with one row per caption contains each image several times."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image

from hf_distinct.data.arrow_files import Rows, scratch_file
from hf_distinct.data.selections import BATCH_ROWS, batches, column
from hf_distinct.data.skips import Skips
from hf_distinct.data.table import SPLITS

TAIL = 256


def find_repeats(images: Sequence[Dataset]) -> np.ndarray:
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
    first = np.arange(len(marks))
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


def merge_rows(texts: Dataset, images: Sequence[Dataset], skips: Skips) -> tuple[Dataset, dict[int, int]]:
    """Move the captions of rows that repeat an image to its first row in the same split.

    Args:
        texts: columns `captions`, `image_id` and `split` of all rows.
        images: datasets with a column `image`, whose rows are those of `texts`.
        skips: see `gather_captions`.

    Returns:
        The texts, where repeating rows have no captions any more, and what `gather_captions` returns.
    """
    first = find_repeats(images)
    ids = np.fromiter(map(hash, column(texts, "image_id")), dtype=np.int64, count=len(texts))
    shared = [np.unique(each, return_inverse=True, return_counts=True)[1:] for each in (first, ids)]
    rows = np.flatnonzero(np.logical_or(*(counts[places] > 1 for places, counts in shared))).tolist()
    some = dict(zip(rows, texts.select(rows), strict=True)) if rows else {}
    captions, image_ids, splits = (
        {row: values[name] for row, values in some.items()} for name in ("captions", "image_id", "split")
    )
    moved = gather_captions(captions, image_ids, splits, first, skips)
    if not moved:
        return texts, moved
    merged = Rows(texts.features, scratch_file(len(texts)))
    for begin, table in zip(range(0, len(texts), BATCH_ROWS), batches(texts, texts.column_names), strict=True):
        columns = table.to_pydict()
        columns["captions"] = [captions.get(begin + place, own) for place, own in enumerate(columns["captions"])]
        merged.write(pa.table(columns, schema=texts.features.arrow_schema))
    return merged.dataset(), moved


def rows_of_splits(texts: Dataset) -> dict[str, np.ndarray]:
    """Return the rows of each split that have captions."""
    told = [
        pc.if_else(pc.greater(pc.list_value_length(table["captions"]), 0), table["split"], "").to_pylist()
        for table in batches(texts, ["captions", "split"])
    ]
    split_of = np.array([SPLITS.index(split) if split else -1 for batch in told for split in batch], dtype=np.int8)
    return {split: rows for number, split in enumerate(SPLITS) if len(rows := np.flatnonzero(split_of == number))}


def gather_captions(
    captions: dict[int, list[str]],
    image_ids: Mapping[int, str],
    splits: Mapping[int, str],
    first: Sequence[int] | np.ndarray,
    skips: Skips,
) -> dict[int, int]:
    """Move the captions of rows that repeat an image to its first row in the same split, in place.

    Args:
        captions: captions of rows, in rising order: at least of all rows that share their image or image id with
            another. A row without captions is ignored. Repeating rows end up without captions.
        image_ids: image id of each of these rows, for messages.
        splits: split of each of these rows.
        first: from `find_repeats`.
        skips: records repeated captions, images in two splits, and ids of several images.

    Returns:
        For each row that repeats an image, the row that has its captions now.
    """
    moved: dict[int, int] = {}
    own: dict[tuple[int, str], int] = {}
    split_of: dict[int, str] = {}
    picture_of: dict[tuple[str, str], int] = {}
    for row, texts in captions.items():
        if not texts:
            continue
        picture, split = int(first[row]), splits[row]
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
    if not moved or not names:
        return []
    involved = sorted({*moved, *moved.values()})
    values = dict(zip(involved, rows.select_columns(list(names)).select(involved), strict=True))
    return [name for name in names if any(values[row][name] != values[to][name] for row, to in moved.items())]


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
