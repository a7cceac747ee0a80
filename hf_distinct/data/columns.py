"""Captioned images in the format of `datasets`: on the Hub, in a `save_to_disk` folder, or as parquet files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Image, Value, concatenate_datasets
from datasets import config as datasets_config
from huggingface_hub import constants

from hf_distinct.data.arrow_files import Rows, scratch_file
from hf_distinct.data.further import TAKEN, is_further, tell_differing, tell_further
from hf_distinct.data.opening import open_columns
from hf_distinct.data.same_picture import differing_columns, merge_rows, rows_of_splits
from hf_distinct.data.selections import batches
from hf_distinct.data.skips import Skips
from hf_distinct.data.table import (
    ID_COLUMNS,
    IMAGE_NAMES,
    find_file,
    find_image_root,
    split_named,
    whole,
)  # fmt: skip
from hf_distinct.data.texts import TEXT_FIELDS, clean_captions, find_name, split_field
from hf_distinct.files.fence import Fence, is_address, local_file

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")
TEXT_TYPES = ("string", "large_string", "string_view")
_TEXTS = Features({"captions": [Value("string")], "image_id": Value("string"), "split": Value("string")})
_NUMBERED = re.compile(r"(?:caption|text|sentence|comment|raw)s?_?\d+", re.IGNORECASE)


@dataclass
class _Origin:
    """The origin of a dataset, which determines what files its rows may name."""

    folder: Path | None  # for local data
    fence: Fence
    address: str = ""  # of the dataset on the Hub, whose own files may be named


@dataclass
class _Part:
    """A split as named by the source."""

    rows: Dataset
    images: Dataset
    texts: Dataset  # captions (none if the row is skipped), image_id and split of each row


def load_columns(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    strict: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
    dataset_config: str | None = None,
) -> DatasetDict:
    """Load a dataset from the Hub (`owner/name`), a `save_to_disk` folder, or parquet files.

    Images stay encoded, in the files that `datasets` memory-maps. Rows with the same image (equal bytes or path) in
    the same split are merged to one image with all captions, since some datasets have one row per caption.

    Args:
        path: folder, parquet file, or id on the Hub.
        image_root: folder that image paths are relative to, if the image column contains text; by default the
            folder of the data. Only files in this folder are read, and URLs in local files are not followed.
        strict: raise an error for a row without image or caption.
        image_column: column of the images: an `Image`, its encoded bytes, or paths. By default "image", or the only
            column of images, or the only one with a usual name.
        caption_column: column of the captions: a text, a struct with a text, or a list of these; `COLUMN.FIELD`
            selects a field of structs. By default "captions", or the only column with a usual name ("caption",
            "text", "sentences", ...), or numbered columns (`caption_0`, `caption_1`, ...).
        dataset_config: name of the configuration, if there are several.

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id`, and further columns with
        texts, numbers or booleans. A single split becomes "train", whatever its name, unless its rows name their split
        in a column `split`, as in Flickr30k on the Hub. The id is that of a column `image_id`, `cocoid`, `img_id` or
        `imgid`, otherwise split and row number.

    Raises:
        FileNotFoundError: the path does not exist, and there is no such dataset on the Hub.
        ValueError: a column is missing or has the wrong type, a split has an unknown name, a configuration must be
            selected, or no row is usable.
    """
    source, raw = str(path), open_columns(path, dataset_config)
    splits = _splits_of_parts(raw, source)
    skips = Skips(source, strict)
    origin = _origin(path, image_root)
    parts = []
    for name, rows in raw.items():
        image, captions = image_column or _image_column(rows), _caption_columns(rows, caption_column)
        _check_columns(rows, source, image, captions)
        images = _to_images(rows.select_columns([image]), image, image_root, origin, skips)
        parts.append(_read(rows, images, str(name), captions, splits[name], origin, skips))
    texts = concatenate_datasets([part.texts for part in parts])
    texts, moved = merge_rows(texts, [part.images for part in parts], skips)
    used = {image, _id_column(rows), "split", *(split_field(each, rows.column_names)[0] for each in captions)}
    found = _assemble(parts, texts, _further(parts, source, used, moved))
    if not found:
        raise ValueError(
            f"{source}: no row is usable: {skips.summary() or 'there are none'}. If files are missing: set "
            "--image_root to the folder that their paths are relative to."
        )
    skips.warn()
    return found


def _origin(path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None) -> _Origin:
    place = Path(path)
    if place.exists():
        folder = place if place.is_dir() else place.parent
        return _Origin(folder, Fence([folder if image_root is None else image_root]))
    caches = [constants.HF_HUB_CACHE, datasets_config.HF_DATASETS_CACHE, datasets_config.DOWNLOADED_DATASETS_PATH]
    return _Origin(None, Fence(caches if image_root is None else [image_root]), f"hf://datasets/{path}")


def _splits_of_parts(raw: DatasetDict, source: str) -> dict[str, str | None]:
    """Return the split of each part: by its name; None, if the rows of a single part name theirs in a column."""
    names: dict[str, str | None] = {name: str(name) for name in raw}
    if len(raw) == 1:
        ((name, rows),) = raw.items()
        by_column = rows.features.get("split") in (Value("string"), Value("large_string"))
        names = {name: None if by_column else "train"}
    return {part: None if name is None else _known_split(name, source) for part, name in names.items()}


def _known_split(name: str | None, source: str) -> str:
    if (split := split_named(str(name))) is None:
        raise ValueError(f"{source}: unknown split {str(name)!r}; expected train, validation (val, dev) and test.")
    return split


def _image_column(rows: Dataset) -> str:
    pictures = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    return pictures[0] if len(pictures) == 1 else find_name(rows.column_names, IMAGE_NAMES) or "image"


def _caption_columns(rows: Dataset, column: str | None) -> list[str]:
    if name := column or find_name(rows.column_names):
        return [name]
    return [name for name in rows.column_names if _NUMBERED.fullmatch(name)] or [""]


def _check_columns(rows: Dataset, source: str, image_column: str, caption_columns: list[str]) -> None:
    for column, setting in [(image_column, "image_column"), *((each, "caption_column") for each in caption_columns)]:
        name, field = split_field(column, rows.column_names)
        if name not in rows.column_names:
            raise ValueError(
                f"{source}: there is no column {name or 'captions'!r}; set --{setting} to one of "
                f"{', '.join(rows.column_names)}."
            )
        if setting == "caption_column" and not _holds_texts(rows.features[name], field):
            raise ValueError(
                f"{source}: column {column!r} should contain a text or a list of texts, but is {rows.features[name]}. "
                "Set --caption_column to another column, or to COLUMN.FIELD if it holds structs."
            )


def _holds_texts(feature: Any, field: str | None) -> bool:
    if isinstance(feature, dict):
        name = field or next((each for each in TEXT_FIELDS if each in feature), None)
        return name in feature and _holds_texts(feature[name], None)
    if isinstance(feature, (list, tuple)):
        return _holds_texts(feature[0], field)
    if hasattr(feature, "feature"):  # List, LargeList, Sequence
        return _holds_texts(feature.feature, field)
    return isinstance(feature, Value) and feature.dtype in (*TEXT_TYPES, "null")


def _to_images(
    images: Dataset, column: str, image_root: str | os.PathLike[str] | None, origin: _Origin, skips: Skips
) -> Dataset:
    images = images if column == "image" else images.rename_column(column, "image")
    feature: Any = images.features["image"]
    if isinstance(feature, Image):
        return images.cast_column("image", Image())
    if isinstance(feature, Value) and feature.dtype in TEXT_TYPES:
        given = images["image"][:]
        named = [path for path in given if path]
        if named and re.match(r"https?://", named[0]):
            raise ValueError(
                f"{skips.source}: column {column!r} contains URLs, not images. Download them first, for instance with "
                "img2dataset, and pass the folder of its shards."
            )
        if origin.folder is None and image_root is None:
            raise ValueError(f"{skips.source}: column {column!r} contains paths: set --image_root to their folder.")
        root = find_image_root(named, skips.source, image_root, [origin.folder] if origin.folder else []).folder
        paths = [path if not path or is_address(path) else os.path.abspath(root / path) for path in given]
        paths = [path and (find_file(path) or path) for path in paths]
        return Dataset.from_dict({"image": paths}).cast_column("image", Image())
    bytes_of_struct = isinstance(feature, dict) and {"bytes", "path"} >= set(feature) and "bytes" in feature
    if bytes_of_struct or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")):
        return images.cast_column("image", Image())
    raise ValueError(
        f"{skips.source}: the image column should contain images, their encoded bytes or paths; it is {feature}. Set "
        "--image_column to another column."
    )


def _read(
    rows: Dataset,
    images: Dataset,
    name: str,
    caption_columns: list[str],
    split: str | None,
    origin: _Origin,
    skips: Skips,
) -> _Part:
    """Read captions and ids from the rows, and record which rows cannot be used."""
    fields = [split_field(column, rows.column_names) for column in caption_columns]
    id_column = _id_column(rows)
    wanted = [*(column for column, _ in fields), *filter(None, [id_column, None if split else "split"])]
    texts = Rows(_TEXTS, scratch_file(len(rows)))
    both = zip(batches(rows, list(dict.fromkeys(wanted))), batches(images, ["image"]), strict=True)
    for batch, place in both:
        columns = {column: batch[column].to_pylist() for column in batch.column_names}
        kept: dict[str, list[Any]] = {each: [] for each in _TEXTS}
        for at, problem in enumerate(_problems(place, origin, f"{skips.source}: {name}", texts.count)):
            identifier = None if id_column is None else whole(columns[id_column][at])
            missing = identifier is None or identifier != identifier
            image_id = f"{name}-{texts.count + at}" if missing else str(identifier)
            cleaned: list[str] = []
            if problem is not None:
                skips.add(problem, image_id)
            elif len(fields) == 1:
                cleaned = clean_captions(columns[fields[0][0]][at], image_id, skips, fields[0][1])
            else:  # an image may have fewer captions than there are columns
                values = [value for column, _ in fields if (value := columns[column][at]) is not None]
                cleaned = clean_captions(values, image_id, skips)
            own = split or _known_split(columns["split"][at], skips.source)
            for each, value in zip(kept.values(), (cleaned, image_id, own), strict=True):
                each.append(value)
        texts.write(pa.table(kept, schema=_TEXTS.arrow_schema))
    return _Part(rows, images, texts.dataset())


def _id_column(rows: Dataset) -> str | None:
    return next((each for each in ID_COLUMNS if each in rows.column_names), None)


def _problems(table: pa.Table, origin: _Origin, source: str, begin: int) -> list[str | None]:
    """Return for each row why it has no image, or None. Raises ValueError for a file outside of the folder."""
    images = table["image"].combine_chunks()
    held = pc.struct_field(images, "bytes").is_valid().to_pylist()
    paths = pc.struct_field(images, "path").to_pylist()
    return [
        None if has_bytes else _problem(path, origin, f"{source}, row {row}")
        for row, (has_bytes, path) in enumerate(zip(held, paths, strict=True), start=begin)
    ]


def _problem(path: str | None, origin: _Origin, where: str) -> str | None:
    if not path:
        return "row without an image"
    local = local_file(path)
    if local is None:
        own = path.rpartition("::")[2]  # problems with it are reported when it is decoded
        if origin.address and own.startswith((f"{origin.address}@", f"{origin.address}/")):
            return None
        return "URL instead of an image (not followed: download it first, for instance with img2dataset), image"
    if not os.path.isfile(local):
        return f"missing image file {path}, image"
    origin.fence.check(local, where)
    return None


def _further(parts: list[_Part], source: str, used: set[str | None], moved: dict[int, int]) -> list[str]:
    """Return the columns for rewards: those that all parts have, of one type, and with one value per image."""
    features = [part.rows.features for part in parts]
    others = {name: [each.get(name) for each in features] for name in features[0] if name not in used}
    kept = [
        name for name, found in others.items() if is_further(name, found[0]) and found.count(found[0]) == len(found)
    ]
    differing = differing_columns(
        concatenate_datasets([part.rows.select_columns(kept) for part in parts]), kept, moved
    )
    tell_differing(source, differing)
    kept = [name for name in kept if name not in differing]
    tell_further(source, kept, sorted(TAKEN & others.keys() - {"captions", "image"}))
    return kept


def _assemble(parts: list[_Part], texts: Dataset, further: list[str]) -> DatasetDict:
    """Put images and captions side by side without copying images, and select the rows of each split."""
    columns = [concatenate_datasets([part.images for part in parts]), texts.remove_columns("split")]
    if further:
        columns.append(concatenate_datasets([part.rows.select_columns(further) for part in parts]))
    joined = concatenate_datasets(columns, axis=1)
    found = rows_of_splits(texts).items()
    return DatasetDict({split: joined if len(rows) == len(joined) else joined.select(rows) for split, rows in found})
