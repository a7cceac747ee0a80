"""Check datasets that were made in Python, and convert them to the form of this package's own sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, LargeList, List, Value
from transformers.utils import logging

from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.skips import NAMES_SHOWN, Skips
from hf_distinct.data.texts import clean_captions

if TYPE_CHECKING:
    from hf_distinct.data.caption_embeddings import CaptionEmbeddings
    from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

CAPTIONED = ("image", "captions", "image_id")
TEXTS = ("string", "large_string")
NAMES = (*TEXTS, "int", "uint")
ENCODED = (*TEXTS, "binary", "large_binary")
ADD_TO = {
    "image": "the images: file paths, encoded bytes, or PIL images",
    "captions": "a list of captions per row",
    "image_id": "a text or an integer that identifies the image",
}
BATCH = 1000


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
    dataset = as_pictures(dataset, name, needs)
    image_ids = _image_ids(dataset, name)
    if image_ids and dataset.features["image_id"].dtype not in TEXTS:
        dataset = _replace(dataset, "image_id", image_ids, Value("string"))
    if "captions" not in dataset.column_names:
        return dataset
    given, skips = _column(dataset, "captions"), Skips(name, strict)
    listed = ([each] if isinstance(each, str) else each or [] for each in given)
    named = zip(listed, names_of(dataset), strict=True)
    captions = [clean_captions(each, who, skips) for each, who in named]
    kept = [row for row, texts in enumerate(captions) if texts]
    if not kept:
        raise ValueError(f"{name}: no row has a usable caption: {skips.summary()}.")
    skips.warn()
    kept = _join_repeats(dataset, image_ids, captions, kept, name) if image_ids else kept
    if captions != given:
        dataset = _replace(dataset, "captions", captions, List(Value("string")))
    return select(dataset, kept, name)


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


def _column(dataset: Dataset, name: str) -> list[Any]:
    """Return the values of one column as Python objects."""
    tables = dataset.select_columns([name]).with_format("arrow").iter(batch_size=BATCH)
    return [value for table in tables for value in table[name].to_pylist()]


def _image_ids(dataset: Dataset, name: str) -> list[str]:
    """Return the image ids as texts; an empty list without this column."""
    if "image_id" not in dataset.column_names:
        return []
    image_ids = _column(dataset, "image_id")
    for row, image_id in enumerate(image_ids):
        if image_id is None or not str(image_id).strip():
            raise ValueError(f"{name}: row {row} has no image_id. Give each image its own id.")
    return list(map(str, image_ids))


def names_of(dataset: Dataset) -> list[str]:
    """Return names of the rows for messages: their image ids, or their numbers."""
    if "image_id" in dataset.column_names:
        return list(map(str, _column(dataset, "image_id")))
    return [f"row {row}" for row in range(len(dataset))]


def _join_repeats(
    dataset: Dataset, image_ids: Sequence[str], captions: list[list[str]], kept: Sequence[int], name: str
) -> list[int]:
    """Move captions of rows with a repeated id to its first row, in place; return the remaining rows."""
    first: dict[str, int] = {}
    repeats = [row for row in kept if first.setdefault(image_ids[row], row) != row]
    if not repeats:
        return list(kept)
    if "image" in dataset.column_names:
        encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))
        for row in repeats:
            if _content(encoded[row]["image"]) != _content(encoded[first[image_ids[row]]]["image"]):
                raise ValueError(
                    f"{name}: image_id {image_ids[row]!r} is used for two images, in rows {first[image_ids[row]]} and "
                    f"{row}. Give each image its own id."
                )
    for row in repeats:
        own = captions[first[image_ids[row]]]
        own += [text for text in captions[row] if text not in own]
    names = list(dict.fromkeys(image_ids[row] for row in repeats))
    more = ", ..." if len(names) > NAMES_SHOWN else ""
    logger.warning(
        f"{name}: {len(repeats)} rows repeat the image of an earlier row; their captions are added to that row "
        f"({', '.join(map(repr, names[:NAMES_SHOWN]))}{more})"
    )
    again = set(repeats)
    return [row for row in kept if row not in again]


def _content(value: dict[str, Any] | None) -> Any:
    return value and (value["path"] if value["bytes"] is None else value["bytes"])


def _replace(dataset: Dataset, name: str, values: Any, feature: Any) -> Dataset:
    """Replace a column; columns are joined side by side, so that images are not copied."""
    return dataset.remove_columns(name).add_column(name, values, feature=feature)


def select(dataset: Dataset, rows: Sequence[int], name: str) -> Dataset:
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


def embeddings_problems(
    dataset: Dataset, embeddings: CaptionEmbeddings, name: str, scorer: ClipScorer | None = None
) -> Iterator[str]:
    """Yield a message if given embeddings do not belong to a dataset's rows and captions.

    Args:
        dataset: the output of `as_captioned`.
        embeddings: the embeddings given with it.
        name: the dataset's name in messages.
        scorer: the CLIP model that they should come from.
    """
    width = embeddings.image_embeds.shape[1]
    if scorer is not None and width != scorer.embed_dim:
        yield (
            f"The embeddings have {width} numbers each, those of the scorer {scorer.name!r} {scorer.embed_dim}: they "
            "come from another CLIP model. Embed the images with this scorer (embed_dataset)."
        )
    advice = "Pass the dataset and the embeddings that embed_dataset returned together."
    if len(embeddings) != len(dataset):
        yield f"The embeddings belong to {len(embeddings)} images, but {name} has {len(dataset)} rows. {advice}"
    elif "row" not in dataset.column_names or not _counts_rows(dataset):
        yield f"The column 'row' of {name} should count its rows from 0, as the embeddings do. {advice}"
    else:
        counts = np.array([len(texts) for texts in _column(dataset, "captions")])
        embedded = np.diff(embeddings.caption_offsets.numpy())
        for row in np.flatnonzero(counts != embedded)[:1].tolist():
            yield (
                f"Row {row} of {name} has {counts[row]} captions, but {embedded[row]} were embedded. "
                f"{advice}"
            )


def neighbours_problems(dataset: Dataset, name: str, wanted: int = 0) -> Iterator[str]:
    """Yield problems of a column `neighbours` in a dataset; nothing without such a column.

    Args:
        dataset: the dataset as given, before its rows are numbered again.
        name: its name in messages.
        wanted: `pool_neighbours`, the required number per row; 0 for any number.
    """
    if "neighbours" not in dataset.column_names:
        return
    feature: Any = dataset.features["neighbours"]
    inner = feature.feature if isinstance(feature, (List, LargeList)) else None
    remedy = "Remove it (dataset.remove_columns('neighbours')): training then mines again."
    if not (isinstance(inner, Value) and "int" in inner.dtype):
        yield f"{name}: the column 'neighbours' should contain lists of row numbers; it is {feature}. {remedy}"
        return
    if "row" in dataset.column_names and not _counts_rows(dataset):
        yield f"{name}: its rows were selected or reordered since the column 'neighbours' was mined. {remedy}"
        return
    table: pa.Table = dataset.select_columns(["neighbours"]).with_format("arrow")[:]
    column = table["neighbours"].combine_chunks()
    rows, named = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column).to_numpy(zero_copy_only=False)
    for place in np.flatnonzero((named < 0) | (named >= len(dataset)))[:1].tolist():
        yield (
            f"{name}: row {rows[place]} has the neighbour {named[place]}, but there are {len(dataset)} rows: the "
            f"column 'neighbours' belongs to another dataset. {remedy}"
        )
        return
    for place in np.flatnonzero(named == rows)[:1].tolist():
        yield f"{name}: row {rows[place]} is its own neighbour: the column 'neighbours' is for other rows. {remedy}"
        return
    longest = int(np.bincount(rows, minlength=1).max(initial=0))
    if wanted and longest != min(wanted, len(dataset) - 1):
        yield (
            f"{name}: pool_neighbours={wanted}, but its column 'neighbours' has {longest} in each row. Set "
            f"pool_neighbours={longest}, or remove the column (dataset.remove_columns('neighbours')): training then "
            "mines again."
        )


def _counts_rows(dataset: Dataset) -> bool:
    return np.array_equal(_column(dataset, "row"), np.arange(len(dataset)))
