import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value

from hf_distinct.data import selections
from hf_distinct.data.selections import batches, column, first_places, with_column


@pytest.fixture
def ten():
    return Dataset.from_dict({"image": [bytes([row]) * 1000 for row in range(10)], "row": list(range(10))})


@pytest.mark.parametrize("rows", [[7, 3, 1], [2, 3, 4], list(range(10))])
def test_a_new_column_copies_none_that_is_there(rows, ten):
    chosen = ten.select(rows)
    found = with_column(chosen, "name", [f"row {row}" for row in rows])
    assert found["name"][:] == [f"row {row}" for row in rows] and found["row"][:] == rows
    assert address(found) == address(ten)
    lists = pa.array([[row] * (row % 3) for row in rows])
    found = with_column(found, "neighbours", lists, List(Value("int64")))
    assert found["neighbours"][:] == lists.to_pylist() and found["name"][0] == f"row {rows[0]}"
    assert address(found) == address(ten) and found.features["neighbours"] == List(Value("int64"))
    again = with_column(found, "row", np.arange(len(rows)))
    assert again["row"][:] == list(range(len(rows))) and address(again) == address(ten)
    assert again.shuffle(seed=0)["name"][:] != again["name"][:]


def address(dataset):
    """Where the bytes of the images begin."""
    return dataset.data["image"].chunk(0).buffers()[2].address


def test_rows_that_are_chosen_twice_are_copied(ten):
    found = with_column(ten.select([5, 5, 2]), "name", ["a", "b", "c"])
    assert list(zip(found["row"], found["name"], strict=True)) == [(5, "a"), (5, "b"), (2, "c")]


def test_batches_and_columns(ten, monkeypatch):
    monkeypatch.setattr(selections, "BATCH_ROWS", 4)
    chosen = ten.select([9, 1, 2, 3, 8])
    assert [table["row"].to_pylist() for table in batches(chosen, ["row"])] == [[9, 1, 2, 3], [8]]
    assert list(column(chosen, "row")) == [9, 1, 2, 3, 8]


def test_first_places():
    assert first_places(np.array([5, 3, 5, 3, 9])).tolist() == [0, 1, 0, 1, 4]
