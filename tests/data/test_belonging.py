from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from hf_distinct.data.belonging import embeddings_problems, neighbours_problems
from hf_distinct.data.caption_embeddings import CaptionEmbeddings


def rows(**columns):
    """Two rows, as `as_captioned` returns them."""
    return Dataset.from_dict({"captions": [["a dog", "a cat"], ["a bird"]], "image_id": ["a", "b"], **columns})


def test_embeddings_are_those_of_the_rows():
    given = rows(row=[0, 1])
    fitting = CaptionEmbeddings(torch.eye(2), torch.eye(3), torch.tensor([0, 2, 3]))
    assert not list(embeddings_problems(given, fitting, "train_dataset"))
    (problem,) = embeddings_problems(given.select([0]), fitting, "train_dataset")
    assert "to 2 images, but train_dataset has 1 rows" in problem
    for wrong in (given.remove_columns("row"), given.select([1, 0])):
        (problem,) = embeddings_problems(wrong, fitting, "train_dataset")
        assert "'row' of train_dataset should count its rows" in problem
    (problem,) = embeddings_problems(given, fitting, "train_dataset", SimpleNamespace(embed_dim=16, name="clip"))
    assert problem.startswith("The embeddings have 2 numbers each, those of the scorer 'clip' 16")
    other = CaptionEmbeddings(torch.eye(2), torch.eye(3), torch.tensor([0, 1, 3]))
    (problem,) = embeddings_problems(given, other, "train_dataset")
    assert problem.startswith("Row 0 of train_dataset has 2 captions, but 1 were embedded.")


@pytest.mark.parametrize(
    ("neighbours", "wanted", "message"),
    [
        ([[1], [0]], 0, None),
        ([[1], [0]], 1, None),
        ([[1], []], 1, None),  # an image may have fewer
        ([[1], [0]], 5, None),  # there are no more
        ([[1, 1], [0]], 1, "pool_neighbours=1, but its column 'neighbours' has 2 in each row. Set pool"),
        ([[1], [2]], 0, "row 1 has the neighbour 2, but there are 2 rows"),
        ([[-1], [0]], 0, "row 0 has the neighbour -1"),
        ([[1], [1]], 0, "row 1 is its own neighbour"),
        ([["b"], ["a"]], 0, "should contain lists of row numbers"),
        ([1, 0], 0, "should contain lists of row numbers"),
    ],
)
def test_neighbours_that_came_with_the_data(neighbours, wanted, message):
    found = list(neighbours_problems(rows(neighbours=neighbours), "train_dataset", wanted))
    assert len(found) == (message is not None) and all(message in problem for problem in found)


def test_neighbours_that_were_mined_before_rows_were_moved():
    given = rows(neighbours=[[1], [0]], row=[0, 1])
    assert not list(neighbours_problems(given, "train_dataset"))
    (problem,) = neighbours_problems(given.select([1, 0]), "train_dataset")
    assert "selected or reordered since the column 'neighbours' was mined" in problem
