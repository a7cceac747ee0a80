"""Captioned images that are a `datasets` data set already: on the Hub, in `save_to_disk` form, or as parquet files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image, List, Value, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from hf_distinct.data.skips import Skips
from hf_distinct.data.table import SPLITS, caption_features, clean_captions, split_named

# Columns that published data sets name their images by; without one, an image is named by its split and row.
ID_COLUMNS = ("image_id", "cocoid", "img_id", "imgid")
SAVED = ("dataset_dict.json", "dataset_info.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")


def load_columns(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    strict: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> DatasetDict:
    """Load a data set from the Hub (`owner/name`), a `save_to_disk` folder, or parquet files.

    Images stay encoded, in the files that `datasets` maps them from.

    Args:
        path: Folder, parquet file, or id on the Hub.
        image_root: Folder that paths of images, where the image column holds text, are relative to.
        strict: Whether a row without image or caption is an error.
        image_column: Column of the images: an `Image`, its encoded bytes, or paths; "image" by default.
        caption_column: Column of the captions: a text or a list of texts a row; "captions" by default.

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id`. A single split, whatever its
        name, is "train", unless its rows name theirs in a column `split`, as Flickr30k's do on the Hub. The id is that
        of a column `image_id`, `cocoid`, `img_id` or `imgid`, else split and row.

    Raises:
        FileNotFoundError: There is nothing at that path, and no such data set on the Hub.
        ValueError: A column is missing or of another kind, a split has an unknown name, or no row is usable.
    """
    source, raw = str(path), _open(path)
    if len(raw) == 1:
        raw = _by_split_column(next(iter(raw.values())))
    unknown = [name for name in raw if split_named(str(name)) is None]
    if unknown:
        raise ValueError(f"{source}: unknown split {unknown[0]!r}; expected train, validation (val, dev) and test.")
    skips = Skips(source, strict)
    parts: dict[str, list[Dataset]] = {split: [] for split in SPLITS}
    for name, rows in raw.items():
        image, captions = image_column or "image", caption_column or "captions"
        _check_columns(rows, source, image, captions)
        part = _to_captions(rows, str(name), image, captions, None if image_root is None else Path(image_root), skips)
        parts[split_named(str(name)) or ""].append(part)
    splits = {split: concatenate_datasets(members) for split, members in parts.items() if members}
    if not any(map(len, splits.values())):
        raise ValueError(f"{source}: no row is usable: {skips.summary() or 'there are none'}.")
    skips.warn()
    return DatasetDict({split: rows for split, rows in splits.items() if len(rows)})


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED)


def holds_parquet(folder: Path) -> bool:
    """Whether there are parquet files in a folder or below it."""
    return next(folder.rglob("*.parquet"), None) is not None


def _open(path: str | os.PathLike[str]) -> DatasetDict:
    place = Path(path)
    if place.is_dir() and is_saved(place):
        loaded = load_from_disk(str(place))
        return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})
    if place.is_dir():
        return load_dataset(str(place))
    if place.is_file():
        return load_dataset("parquet", data_files=str(place))
    try:
        return load_dataset(os.fspath(path))
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"There is no file or folder {str(path)!r}, and no such data set is to be had from the Hub: {error}"
        ) from error


def _by_split_column(rows: Dataset) -> DatasetDict:
    """The only split of a data set as the splits that a column `split` names; all of it is "train" without one."""
    if rows.features.get("split") != Value("string"):
        return DatasetDict({"train": rows})
    members: dict[str, list[int]] = {}
    for row, name in enumerate(rows["split"]):
        members.setdefault(str(name), []).append(row)
    return DatasetDict({name: rows.select(chosen) for name, chosen in members.items()})


def _check_columns(rows: Dataset, source: str, image_column: str, caption_column: str) -> None:
    for name, setting in ((image_column, "image_column"), (caption_column, "caption_column")):
        if name not in rows.column_names:
            raise ValueError(
                f"{source}: there is no column {name!r}; set --{setting} to one of {', '.join(rows.column_names)}."
            )
    feature = rows.features[caption_column]
    inner = feature.feature if isinstance(feature, List) else feature
    if not (isinstance(inner, Value) and inner.dtype in ("string", "large_string")):
        raise ValueError(
            f"{source}: column {caption_column!r} should hold a text or a list of texts, it is {feature}."
        )


def _to_captions(
    rows: Dataset, name: str, image_column: str, caption_column: str, image_root: Path | None, skips: Skips
) -> Dataset:
    """Return the usable rows of a split in the columns that every source ends in."""
    images = rows.select_columns([image_column])
    images = images if image_column == "image" else images.rename_column(image_column, "image")
    images = _to_images(images, image_root, skips)
    id_column = next((each for each in ID_COLUMNS if each in rows.column_names), None)
    wanted = [caption_column] if id_column is None else [caption_column, id_column]
    kept: list[int] = []
    captions: list[list[str]] = []
    image_ids: list[str] = []
    texts = rows.select_columns(wanted).with_format("arrow").iter(batch_size=1000)
    places = images.with_format("arrow").iter(batch_size=1000)
    row = -1
    for batch, place in zip(texts, places, strict=True):
        ids = [None] * len(batch) if id_column is None else batch[id_column].to_pylist()
        for value, identifier, problem in zip(batch[caption_column].to_pylist(), ids, _problems(place), strict=True):
            row += 1
            image_id = f"{name}-{row}" if identifier is None else str(identifier)
            if problem is not None:
                skips.add(problem, image_id)
            elif cleaned := clean_captions([value] if isinstance(value, str) else value or [], image_id, skips):
                kept.append(row)
                captions.append(cleaned)
                image_ids.append(image_id)
    features = caption_features()
    if not kept:
        return Dataset.from_dict({name: [] for name in features}, features=features)
    if len(kept) < len(images):
        images = images.select(kept)
    schema = pa.schema([(each, features.arrow_schema.field(each).type) for each in ("captions", "image_id")])
    other = Dataset(pa.table({"captions": captions, "image_id": image_ids}, schema=schema))
    # Side by side, so that the images are not copied.
    return concatenate_datasets([images, other], axis=1)


def _to_images(images: Dataset, image_root: Path | None, skips: Skips) -> Dataset:
    feature: Any = images.features["image"]
    if isinstance(feature, Image):
        return images.cast_column("image", Image())
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        root = image_root or Path()
        paths = [None if path is None else os.path.abspath(root / path) for path in images["image"]]
        return Dataset.from_dict({"image": paths}).cast_column("image", Image())
    bytes_of_struct = isinstance(feature, dict) and {"bytes", "path"} >= set(feature) and "bytes" in feature
    if bytes_of_struct or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")):
        return images.cast_column("image", Image())
    raise ValueError(
        f"{skips.source}: the image column should hold images, their encoded bytes or paths; it is {feature}. Set "
        "--image_column?"
    )


def _problems(table: pa.Table) -> list[str | None]:
    """Why a row has no image, row by row; None where it has one."""
    images = table["image"].combine_chunks()
    held = pc.struct_field(images, "bytes").is_valid().to_pylist()
    problems: list[str | None] = []
    for has_bytes, path in zip(held, pc.struct_field(images, "path").to_pylist(), strict=True):
        if has_bytes:
            problems.append(None)
        elif path is None:
            problems.append("row without an image")
        else:
            # Of data sets with files on the Hub or within archives ("zip://a.jpg::..."), decoding will tell.
            local = "://" not in path
            problems.append(f"missing image file {path}, image" if local and not os.path.isfile(path) else None)
    return problems
