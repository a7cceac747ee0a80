"""Check datasets that were made in Python, and convert them to the form of this package's own sources."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, LargeList, List, Value
from transformers.utils import logging

from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.selections import BATCH_ROWS, batches, column, first_places, with_column
from hf_distinct.data.skips import NAMES_SHOWN, Skips
from hf_distinct.data.texts import clean_captions
from hf_distinct.text.limits import MAX_CAPTION_CHARACTERS

logger = logging.get_logger(__name__)

CAPTIONED = ("image", "captions", "image_id")
TEXTS = ("string", "large_string")
NAMES = (*TEXTS, "int", "uint")
ENCODED = (*TEXTS, "binary", "large_binary")
_PREPARED: weakref.WeakSet[Dataset] = weakref.WeakSet()
"""What `as_captioned` returned, which it need not read again."""
ADD_TO = {
    "image": "the images: file paths, encoded bytes, or PIL images",
    "captions": "a list of captions per row",
    "image_id": "a text or an integer that identifies the image",
}


def as_captioned(dataset: Any, name: str, needs: Sequence[str] = CAPTIONED, strict: bool = False) -> Dataset:
    """Check a dataset and convert it to the form of `hf_distinct.data`'s own sources.

    - `image` may contain anything that `as_pictures` accepts.
    - `captions` may contain one text per row or a list of texts. Captions that are null, empty or too long are
      dropped, and so are rows without a caption (see `clean_captions`); one warning counts and names them.
    - `image_id` may contain texts or integers, which become texts. Rows with the same id and the same image are merged
      to one row with all captions; a warning counts and names them.
    - A format (`with_format("torch")` and others) is removed.

    A dataset that already has this form is returned without copying. Other columns are not changed.

    Args:
        dataset: the dataset.
        name: its name in messages, e.g. "train_dataset".
        needs: required columns; others are checked if they exist.
        strict: raise an error instead of dropping with a warning.

    Raises:
        ValueError: it is not a suitable dataset, no row is usable, an id is missing or used for two images, or
            (strict) anything is dropped. The message begins with the name.
    """
    given, dataset = dataset, as_pictures(dataset, name, needs)
    names = [each for each in ("image_id", "captions") if each in dataset.column_names]
    if given in _PREPARED or not names:
        return dataset
    skips = Skips(name, strict)
    read = _Read(np.arange(len(dataset)), np.ones(len(dataset), dtype=bool))
    for begin, table in zip(range(0, len(dataset), BATCH_ROWS), batches(dataset, names), strict=True):
        read.add(table, begin, skips)
    dataset = read.with_changes(dataset)
    kept = np.flatnonzero(read.told)
    if not len(kept):
        raise ValueError(f"{name}: no row has a usable caption: {skips.summary()}.")
    skips.warn()
    if names[0] == "image_id" and names[-1] == "captions":
        dataset, kept = _join_repeats(dataset, read.image_ids, kept, name)
    dataset = select(dataset, kept, name)
    _PREPARED.add(dataset)
    return dataset


def as_evaluated(dataset: Any, name: str, needs: Sequence[str] = ("image",), strict: bool = False) -> Dataset:
    """Do the same as `as_captioned` for an evaluation dataset, which needs only images and no neighbours."""
    if isinstance(dataset, Dataset) and "neighbours" in dataset.column_names:
        dataset = dataset.remove_columns("neighbours")
    return as_captioned(dataset, name, needs, strict)


def as_evaluated_parts(dataset: Any, name: str) -> Any:
    """Do the same as `as_evaluated` for the values of ``eval_dataset``: a dataset, a dict of datasets, or None."""
    if isinstance(dataset, dict):
        return {key: as_evaluated(part, f"{name}[{key!r}]") for key, part in dataset.items()}
    return None if dataset is None else as_evaluated(dataset, name)


def as_pictures(dataset: Any, name: str, needs: Sequence[str] = ("image",)) -> Dataset:
    """Check a dataset and convert its column `image` to `datasets.Image`; rows are not changed.

    Args:
        dataset: its column `image`, if it exists, contains images (`datasets.Image`), their encoded bytes, uint8
            arrays (height, width, 3), or paths, including fsspec URLs (`zip://...`, `https://...`).
        name: its name in messages.
        needs: required columns.

    Raises:
        ValueError: see `dataset_problems`; or arrays have another shape.
    """
    for problem in dataset_problems(dataset, name, needs):
        raise ValueError(problem)
    dataset = dataset.with_format(None)
    if "image" not in dataset.column_names or dataset.features["image"] == Image():
        return dataset
    try:
        return dataset.cast_column("image", Image())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: column 'image' cannot be read as images: {error}") from error


def dataset_problems(dataset: Any, name: str, needs: Sequence[str] = CAPTIONED) -> Iterator[str]:
    """Yield problems of a dataset as a whole, without reading its rows.

    Args:
        dataset: the dataset, or anything passed instead.
        name: its name in messages.
        needs: required columns.
    """
    if not isinstance(dataset, Dataset):
        yield f"{name} should be a datasets.Dataset, not {_kind(dataset)}"
        return
    if dataset.format["type"] == "custom":
        yield (
            f"{name} has a transform (set_transform or with_transform), which would affect only some of its uses. "
            "Remove it with dataset.reset_format(), and use dataset.map instead."
        )
    missing = [each for each in needs if each not in dataset.column_names]
    for each in missing:
        yield (
            f"{name} has no column {each!r} ({ADD_TO[each]}); it has {', '.join(dataset.column_names) or 'none'}. "
            f"Rename the right one: dataset.rename_column(..., {each!r})."
        )
    if not len(dataset) and not missing:
        yield f"{name} has no rows."
    yield from _feature_problems(dataset.features, name)


def _kind(dataset: Any) -> str:
    """Describe what was passed instead of a dataset, and what to do about it."""
    if isinstance(dataset, dict):
        how = "Choose one of its splits" if isinstance(dataset, DatasetDict) else "Choose one of its values"
        return f"a {type(dataset).__name__} of {', '.join(map(repr, dataset)) or 'nothing'}. {how}."
    if isinstance(dataset, IterableDataset):
        return (
            "a stream (IterableDataset), but its images are embedded once and read in random order. Load it without "
            "streaming=True, or take a part: Dataset.from_list(list(stream.take(10_000)))."
        )
    if dataset is None:
        return "None."
    return (
        f"a {type(dataset).__name__}. Make one from rows, which are dicts with image, captions and image_id: "
        "datasets.Dataset.from_list(list(rows)), or Dataset.from_generator for many."
    )


def _feature_problems(features: Features, name: str) -> Iterator[str]:
    image: Any = features.get("image")
    if isinstance(image, Image):
        if image.mode not in (None, "RGB"):
            yield (
                f"{name}: column 'image' is converted to mode {image.mode!r}, which pipeline('image-to-text') does "
                "not do. Cast it to datasets.Image(), or store the converted images."
            )
    elif image is not None and not _holds_pictures(image):
        yield (
            f"{name}: column 'image' should contain images, their encoded bytes, paths, or uint8 arrays (height, "
            f"width, 3); it is {image}."
        )
    captions: Any = features.get("captions")
    inner = captions.feature if isinstance(captions, (List, LargeList)) else captions
    if captions is not None and not (isinstance(inner, Value) and inner.dtype in TEXTS):
        yield f"{name}: column 'captions' should contain a text or a list of texts per row; it is {captions}."
    image_id: Any = features.get("image_id")
    if image_id is not None and not (isinstance(image_id, Value) and image_id.dtype.startswith(NAMES)):
        yield f"{name}: column 'image_id' should contain texts or integers; it is {image_id}."


def _holds_pictures(feature: Any) -> bool:
    if isinstance(feature, dict):
        return set(feature) <= {"bytes", "path"}
    if isinstance(feature, Value):
        return feature.dtype in ENCODED
    while isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return getattr(feature, "dtype", None) == "uint8"


class _Read:
    """The ids and captions of a dataset, read in one go: what changes, and what is needed to find repeated images.

    Attributes:
        image_ids: ``(N,)``, hashes of the image ids.
        told: ``(N,)``, whether a row has a usable caption.
    """

    def __init__(self, image_ids: np.ndarray, told: np.ndarray) -> None:
        self.image_ids, self.told = image_ids, told
        self._ids: list[pa.Array] = []  # if they are not texts
        self._captions: list[pa.Array | None] = []  # of each batch; None if none changes

    def add(self, table: pa.Table, begin: int, skips: Skips) -> None:
        """Read the next rows, which begin at row `begin`."""
        rows = slice(begin, begin + len(table))
        names: Sequence[str] = [f"row {row}" for row in range(rows.start, rows.stop)]
        if "image_id" in table.column_names:
            ids = table["image_id"].combine_chunks()
            texts = ids if ids.type in (pa.string(), pa.large_string()) else ids.cast(pa.string())
            if texts is not ids:
                self._ids.append(texts)
            missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), True)
            for place in np.flatnonzero(missing)[:1]:
                raise ValueError(f"{skips.source}: row {begin + place} has no image_id. Give each image its own id.")
            names = texts.to_pylist()
            self.image_ids[rows] = list(map(hash, names))
        if "captions" in table.column_names:
            given = table["captions"].combine_chunks()
            cleaned = _cleaned(given, names, skips)
            self._captions.append(None if cleaned is given else cleaned)
            self.told[rows] = pc.greater(pc.list_value_length(cleaned), 0)

    def with_changes(self, dataset: Dataset) -> Dataset:
        """Return the dataset with ids that are texts, and cleaned captions."""
        if self._ids:
            dataset = with_column(dataset, "image_id", pa.chunked_array(self._ids), Value("string"))
        if any(each is not None for each in self._captions):
            both = zip(self._captions, batches(dataset, ["captions"]), strict=True)
            lists = [table["captions"].combine_chunks() if new is None else new for new, table in both]
            joined = pa.chunked_array([each.cast(pa.list_(pa.string())) for each in lists])
            dataset = with_column(dataset, "captions", joined, List(Value("string")))
        return dataset


def _cleaned(captions: pa.Array, names: Sequence[str], skips: Skips) -> pa.Array:
    """Return the cleaned captions of some rows; the array itself if nothing changes."""
    if not len(odd := _odd_rows(captions)):
        return captions
    values = captions.to_pylist()
    for place in odd.tolist():
        texts = [values[place]] if isinstance(values[place], str) else values[place] or []
        values[place] = clean_captions(texts, names[place], skips)
    return captions if values == captions.to_pylist() else pa.array(values, pa.list_(pa.string()))


def _odd_rows(captions: pa.Array) -> np.ndarray:
    """Return the rows that may need cleaning: all but those whose captions are all texts of two words or more."""
    if not isinstance(captions, (pa.ListArray, pa.LargeListArray)):
        return np.arange(len(captions))
    texts, rows = captions.flatten(), pc.list_parent_indices(captions).to_numpy()
    if not len(texts):
        return np.arange(len(captions))
    plain = [  # as in clean_captions; with a space in the middle, a text is neither empty nor a word for nothing
        pc.string_is_ascii(texts),
        pc.ascii_is_printable(texts),
        pc.less_equal(pc.binary_length(texts), MAX_CAPTION_CHARACTERS),
        pc.equal(pc.ascii_trim_whitespace(texts), texts),
        pc.greater(pc.find_substring(texts, " "), 0),
        pc.invert(pc.match_substring_regex(texts, r"[ .].$|\]$")),
    ]
    odd = np.zeros(len(captions), dtype=bool)
    usual = np.logical_and.reduce([pc.fill_null(each, False).to_numpy(zero_copy_only=False) for each in plain])
    odd[rows[~usual]] = True
    odd |= pc.fill_null(pc.list_value_length(captions), 0).to_numpy(zero_copy_only=False) == 0
    return np.flatnonzero(odd)


def names_of(dataset: Dataset) -> list[str]:
    """Return names of the rows for messages: their image ids, or their numbers."""
    if "image_id" in dataset.column_names:
        return list(map(str, column(dataset, "image_id")))
    return [f"row {row}" for row in range(len(dataset))]


def _join_repeats(
    dataset: Dataset, image_ids: np.ndarray, kept: np.ndarray, name: str
) -> tuple[Dataset, np.ndarray]:
    """Move captions of rows with a repeated id to its first row; return the remaining rows."""
    first = kept[first_places(image_ids[kept])]
    if not len(repeats := kept[first != kept]):
        return dataset, kept
    first_of = dict(zip(repeats.tolist(), first[first != kept].tolist(), strict=True))
    rows = sorted({*first_of, *first_of.values()})
    involved = dict(zip(rows, dataset.select(rows).select_columns(["captions", "image_id"]), strict=True))
    if "image" in dataset.column_names:
        encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
        for row, own in first_of.items():
            if _content(encoded[row]["image"]) != _content(encoded[own]["image"]):
                raise ValueError(
                    f"{name}: image_id {involved[row]['image_id']!r} is used for two images, in rows {own} and {row}. "
                    "Give each image its own id."
                )
    for row, own in first_of.items():
        texts = involved[own]["captions"]
        texts += [text for text in involved[row]["captions"] if text not in texts]
    names = list(dict.fromkeys(involved[row]["image_id"] for row in first_of))
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    logger.warning(
        f"{name}: {len(repeats)} rows repeat the image of an earlier row; their captions are added to that row "
        f"({', '.join(map(repr, names[:NAMES_SHOWN]))}{more})"
    )
    every = enumerate(column(dataset, "captions"))
    captions = [involved[row]["captions"] if row in involved else own for row, own in every]
    return with_column(dataset, "captions", captions, List(Value("string"))), kept[first == kept]


def _content(value: dict[str, Any] | None) -> Any:
    return value and (value["path"] if value["bytes"] is None else value["bytes"])


def select(dataset: Dataset, rows: Sequence[int] | np.ndarray, name: str) -> Dataset:
    """Select rows, unless this would invalidate a column `neighbours`.

    Raises:
        ValueError: there is such a column, and rows would be dropped.
    """
    if len(rows) == len(dataset):
        return dataset
    if "neighbours" in dataset.column_names:
        raise ValueError(
            f"{name}: {len(dataset) - len(rows)} of {len(dataset)} rows are dropped, but the column 'neighbours' "
            "refers to all of them. Remove it (dataset.remove_columns('neighbours')): training then mines again."
        )
    return dataset.select(rows)


def readable(dataset: Dataset, name: str, strict: bool = False) -> Dataset:
    """Drop rows whose image cannot be decoded, with a warning that counts and names them.

    Args:
        dataset: the output of `as_captioned`.
        name: its name in messages.
        strict: raise an error for such an image.

    Raises:
        ValueError: no image can be decoded, or (strict) an image cannot be decoded.
    """
    skips, kept = Skips(name, strict), []
    names = names_of(dataset)
    encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
    for row, value in enumerate(encoded):
        try:
            decode_image(value["image"])
        except ImageError as error:
            skips.add("undecodable image", f"{names[row]}: {error}")
        else:
            kept.append(row)
    if not kept:
        raise ValueError(f"{name}: none of the {len(dataset)} images can be decoded: {skips.summary()}")
    skips.warn()
    return select(dataset, kept, name)
