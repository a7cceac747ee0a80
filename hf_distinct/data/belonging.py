"""Check that the embeddings and neighbours that come with a dataset belong to its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, LargeList, List, Value

from hf_distinct.data.selections import BATCH_ROWS, batches

if TYPE_CHECKING:
    from hf_distinct.data.caption_embeddings import CaptionEmbeddings
    from hf_distinct.scorer import ClipScorer


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
    elif "row" not in dataset.column_names or not counts_rows(dataset):
        yield f"The column 'row' of {name} should count its rows from 0, as the embeddings do. {advice}"
    else:
        lengths = (pc.list_value_length(table["captions"]) for table in batches(dataset, ["captions"]))
        counts = np.concatenate([each.to_numpy() for each in lengths])
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
    if "row" in dataset.column_names and not counts_rows(dataset):
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


def counts_rows(dataset: Dataset) -> bool:
    """Return whether the column `row` is 0, 1, 2, ..."""
    begins = range(0, len(dataset), BATCH_ROWS)
    return all(
        np.array_equal(table["row"].to_numpy(), begin + np.arange(len(table)))
        for begin, table in zip(begins, batches(dataset, ["row"]), strict=True)
    )
