"""Select rows of a dataset and add columns to the selection, without copying the columns that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features

BATCH_ROWS = 4096


def batches(dataset: Dataset, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield columns of consecutive rows as Arrow tables of at most `BATCH_ROWS` rows."""
    yield from dataset.select_columns(list(names)).with_format("arrow").iter(BATCH_ROWS)


def column(dataset: Dataset, name: str) -> Iterator[Any]:
    """Yield the values of one column as Python objects."""
    return (value for table in batches(dataset, [name]) for value in table[name].to_pylist())


def with_column(dataset: Dataset, name: str, values: Any, feature: Any = None) -> Dataset:
    """Add a column, or replace the one of this name.

    `Dataset.add_column` copies all other columns, images included, if the dataset is a selection of rows (`select`,
    `shuffle`, a split). Here the new column gets an entry for every row below the selection, and the rows are
    selected again.

    Args:
        dataset: N rows.
        name: the column.
        values: N values: a list, a NumPy or an Arrow array.
        feature: type of the column; by default that of the values.
    """
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    chosen = getattr(dataset, "_indices", None)  # datasets 4; without it, the images are copied
    rows = None if chosen is None else chosen.column(0).to_numpy()
    if rows is None or len(np.unique(rows)) < len(rows):
        return dataset.add_column(name, values, feature=feature)
    if not isinstance(values, (pa.Array, pa.ChunkedArray)):
        values = pa.array(values, None if feature is None else Features({name: feature}).arrow_schema.field(0).type)
    places = np.full(len(dataset.data), -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    spread = values.take(pa.array(places, mask=places < 0))
    below = Dataset(dataset.data, info=dataset.info.copy(), split=dataset.split)
    return below.add_column(name, spread, feature=feature).select(rows)


def first_places(values: np.ndarray) -> np.ndarray:
    """Return for each value the index of the first equal one."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]
