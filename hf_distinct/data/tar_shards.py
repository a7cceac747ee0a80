"""WebDataset shards: tar files in which the files of a sample are adjacent and share the name before the dot."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets
from transformers.utils import logging

from hf_distinct.data.further import add_kinds, fitting, further_features, tell_differing
from hf_distinct.data.same_picture import differing_columns, merge_rows, rows_of_splits
from hf_distinct.data.selections import with_column
from hf_distinct.data.skips import Skips
from hf_distinct.data.table import IMAGE_ENDINGS, SPLITS, caption_features, parse_json, split_named
from hf_distinct.data.tar_stream import MAX_MEMBER_BYTES, read_samples
from hf_distinct.data.texts import (
    CAPTION_NAMES,
    NOT_UTF8,
    caption_lines,
    clean_captions,
    split_field,
    texts_of,
)  # fmt: skip
from hf_distinct.files.fence import Fence

logger = logging.get_logger(__name__)

TEXT_ENDINGS = ("txt", "caption", "captions", "text", "cap")
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
# Number of samples whose .json determines the further columns.
PEEKED = 100
# Increase this when samples are read differently, so that data cached by an older version are not used.
FORM = 3
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def load_tar_shards(
    path: str | os.PathLike[str], strict: bool = False, caption_column: str | None = None
) -> DatasetDict:
    """Load WebDataset shards (as img2dataset writes them): `000000012.jpg`, `000000012.txt`, `000000012.json`.

    Each shard is read once, sequentially, and never unpacked: the encoded images are written to the cache of
    `datasets` and memory-mapped from there; a second call finds them. The captions of a sample are the key `captions`
    of its .json, otherwise the lines of its .txt (.caption, .captions, .text, .cap), otherwise the first key of its
    .json with another usual name (`caption`, `text`, ...). Samples with the same image in one split are merged.

    Args:
        path: a folder with .tar files, one such file, or a pattern `shards/{00000..00099}.tar`, also with URLs that
            fsspec reads. The split of a shard is the beginning of its name or the name of its folder (`val-003.tar`,
            `val/003.tar`), by default train.
        strict: raise an error for a sample without image or caption or a broken shard.
        caption_column: where the captions are instead: a key of the .json, or a file extension ("txt").

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id` (shard and key), and the keys
        of the .json that contain texts, numbers or booleans in the first samples.

    Raises:
        FileNotFoundError: there are no such shards.
        ValueError: no sample is usable; (strict) anything skipped.
    """
    shards: dict[str, list[str]] = {split: [] for split in SPLITS}
    for shard in find_shards(path):
        shards[_split_of(shard)].append(shard)
    skips, splits = Skips(str(path), strict), {}
    begin = [sample for members in shards.values() for sample in _first_samples(members[:1])]
    further = _further(begin, caption_column, str(path))
    for split, members in shards.items():
        if not members:
            continue
        rows = Dataset.from_generator(
            _rows,
            features=Features({**caption_features(), **further, "problem": Value("string")}),
            # FORM and the files' state are passed for the cache of `datasets`, which depends on the arguments.
            gen_kwargs={
                "shards": tuple(members),
                "column": caption_column,
                "further": {name: feature.dtype for name, feature in further.items()},
                "states": (FORM, MAX_MEMBER_BYTES, *map(file_state, members)),
            },
        )
        problems = rows.select_columns(["image_id", "problem"])
        good = sum(problem is None for problem in problems["problem"])
        if good < len(rows):
            for row in problems.select(range(good, len(rows))):
                skips.add(row["problem"], row["image_id"])
        if good:
            splits[split] = rows.select(range(good)).remove_columns("problem")
    if not splits:
        raise ValueError(f"{path}: no sample is usable: {skips.summary() or 'there are none'}. {_held(begin)}")
    splits = _merged(splits, list(further), skips)
    skips.warn()
    return DatasetDict(splits)


def is_tar(path: str) -> bool:
    """Whether a path is a tar file or a pattern of tar files."""
    return path.lower().endswith(TAR_ENDINGS)


def find_shards(path: str | os.PathLike[str]) -> list[str]:
    """Return the shards in a folder or of a pattern, in order.

    Raises:
        FileNotFoundError: there are none, or one of the pattern is missing.
    """
    place = os.fspath(path)
    if os.path.isdir(place):
        found = sorted(
            file
            for file in glob.glob(os.path.join(glob.escape(place), "**", "*.[tT]*"), recursive=True)
            if is_tar(file)
        )
        fence = Fence([place], "pass the shards themselves, as a pattern shards/{000..099}.tar")
        for shard in found:
            fence.check(shard, place)
    else:
        found = _expand(place)
        missing = [shard for shard in found if "://" not in shard and not os.path.isfile(shard)]
        if missing:
            raise FileNotFoundError(
                f"There is no shard {missing[0]!r}, one of {len(found)} in the pattern {place!r}."
            )
    if not found:
        raise FileNotFoundError(f"There are no .tar files in {place!r}.")
    return [shard if "://" in shard else os.path.abspath(shard) for shard in found]


def _expand(pattern: str) -> list[str]:
    """Expand `{000..012}`, from the left; numbers keep their leading zeros."""
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [each for number in numbers for each in _expand(pattern[: found.start()] + number + pattern[found.end() :])]


def _split_of(shard: str) -> str:
    name, folder = PurePosixPath(Path(shard).as_posix()).name, Path(shard).parent.name
    beginning = re.match(r"[a-zA-Z]+", name)
    return (split_named(beginning.group()) if beginning else None) or split_named(folder) or "train"


def file_state(file: str) -> tuple[int, int]:
    """Return size and time of modification of a file; zeros for a URL."""
    if "://" in file:
        return 0, 0
    state = os.stat(file)
    return state.st_size, state.st_mtime_ns


def _first_samples(shards: list[str]) -> list[dict[str, bytes]]:
    """Return the files of the first samples of shards."""
    return [
        files
        for shard in shards
        for _, (_, files) in zip(range(PEEKED), read_samples(shard, Skips(""), ("json",)), strict=False)
    ]


def _further(samples: list[dict[str, bytes]], column: str | None, source: str) -> Features:
    """Return the keys of the first samples' .json that rewards can read."""
    records = [_record(files, "", Skips("")) for files in samples]
    names = {column, *(name for rank in CAPTION_NAMES for name in rank)}
    further = ({name: value for name, value in record.items() if name not in names} for record in records)
    return further_features(add_kinds({}, further), source)


def _held(samples: list[dict[str, bytes]]) -> str:
    """Describe the first sample, to help with finding the captions."""
    if not samples:
        return "The files of a sample should have the same name: a.jpg, a.txt."
    keys = ", ".join(_record(samples[0], "", Skips("")))
    return (
        f"The first one has the files {', '.join(f'.{ending}' for ending in samples[0])}"
        f"{f', with the keys {keys} in .json' if keys else ''}: set --caption_column to the one with the captions."
    )


def _rows(
    shards: tuple[str, ...], column: str | None, further: dict[str, str], states: Any
) -> Iterator[dict[str, Any]]:
    """Yield the usable samples, and after them the skips, so that a cached result still reports them."""
    skips, wanted = Skips(""), {*IMAGE_ENDINGS, *TEXT_ENDINGS, "json", *filter(None, [column])}
    for shard in shards:
        for key, files in read_samples(shard, skips, wanted):
            name = f"{PurePosixPath(shard).name}/{key}"
            image = next((files[ending] for ending in IMAGE_ENDINGS if ending in files), None)
            record = _record(files, name, skips)
            if image is None:
                skips.add("sample without an image", name)
            elif captions := clean_captions(_captions(files, record, column, name, skips), name, skips):
                yield {
                    "image": {"bytes": image, "path": None},
                    "captions": captions,
                    "image_id": name,
                    "problem": None,
                } | {each: fitting(record.get(each), dtype) for each, dtype in further.items()}
    for reason, names in skips.names.items():
        for name in names:
            yield dict.fromkeys(further) | {"image": None, "captions": [], "image_id": name, "problem": reason}


def _merged(splits: dict[str, Dataset], further: list[str], skips: Skips) -> dict[str, Dataset]:
    """Merge samples with the same image."""
    of_splits = [
        with_column(rows.select_columns(["captions", "image_id"]), "split", pa.repeat(split, len(rows)))
        for split, rows in splits.items()
    ]
    texts, moved = merge_rows(concatenate_datasets(of_splits), list(splits.values()), skips)
    if not moved:
        return splits
    every = concatenate_datasets(list(splits.values()))
    differing = differing_columns(every, further, moved)
    tell_differing(skips.source, differing)
    # Side by side, so that the images are not copied.
    others = every.remove_columns(["captions", "image_id", *differing])
    every = concatenate_datasets([others, texts.remove_columns("split")], axis=1)
    kept = ["image", "captions", "image_id", *(name for name in further if name not in differing)]
    return {split: every.select_columns(kept).select(rows) for split, rows in rows_of_splits(texts).items()}


def _record(files: dict[str, bytes], name: str, skips: Skips) -> dict[str, Any]:
    """Return the content of a sample's .json."""
    if "json" not in files:
        return {}
    try:
        record = parse_json(files["json"], name)
    except ValueError:
        skips.add("sample whose .json is broken", name)
        return {}
    return record if isinstance(record, dict) else {}


def _captions(files: dict[str, bytes], record: dict[str, Any], column: str | None, name: str, skips: Skips) -> Any:
    """Return the captions of a sample, from the given place or from the first place that has any."""
    if column is not None:
        key, field = split_field(column, record)
        if key in record:
            return _texts(record[key], field, name, skips)
        return _lines(files, [column], name, skips)
    first, *others = (key for rank in CAPTION_NAMES for key in rank)
    if record.get(first):
        return _texts(record[first], None, name, skips)
    lines = _lines(files, TEXT_ENDINGS, name, skips)
    held: Any = next((record[each] for each in others if record.get(each)), [])
    return lines or _texts(held, None, name, skips)


def _lines(files: dict[str, bytes], endings: Sequence[str], name: str, skips: Skips) -> list[str]:
    ending = next((each for each in endings if each in files), None)
    try:
        return [] if ending is None else caption_lines(files[ending], name)
    except ValueError:
        skips.add(NOT_UTF8, f"{name}.{ending}")
        return []


def _texts(value: Any, field: str | None, name: str, skips: Skips) -> list[Any]:
    try:
        return texts_of(value, field)
    except ValueError as error:
        nested = "captions that are nested too deeply" if "nested" in str(error) else None
        skips.add(nested or "caption that is an object without a text", name)
        return []
