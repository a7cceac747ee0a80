import logging
import unittest.mock

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.data.mining import mine_neighbours

# Unit vectors whose products are exact in floating point, whatever the order of the sums: entries are 0, +-1 or +-1/2.
EXACT = [torch.eye(4)[i] * sign for i in range(4) for sign in (1, -1)] + [
    torch.tensor([a, b, c, d]) / 2 for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)
]


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def with_ids(*image_ids: str) -> Dataset:
    return Dataset.from_dict({"image_id": list(image_ids)})


def slow(ids, embeds, num_neighbours, first_rank, low, high):
    """The definition, one pair at a time."""
    result = []
    for i, own in enumerate(embeds):
        candidates = []
        for j, other in enumerate(embeds):
            similarity = sum(float(a) * float(b) for a, b in zip(own, other, strict=True))
            if ids[i] != ids[j] and low <= similarity <= high:
                candidates.append((-similarity, j))
        result.append([j for _, j in sorted(candidates)][first_rank - 1 : first_rank - 1 + num_neighbours])
    return result


def test_by_hand_on_a_circle():
    # Angles 0, 10, 30, 57, 180: the smaller the difference, the more similar.
    mined = mine_neighbours(with_ids(*"abcde"), on_circle(0, 10, 30, 57, 180), num_neighbours=2)
    # 30 is 20 from 10, 27 from 57 and 30 from 0; 180 is 123 from 57 and 150 from 30.
    assert mined["neighbours"][:] == [[1, 2], [0, 2], [1, 3], [2, 1], [3, 2]]
    skipped = mine_neighbours(with_ids(*"abcde"), on_circle(0, 10, 30, 57, 180), num_neighbours=2, first_rank=2)
    assert skipped["neighbours"][:] == [[2, 3], [2, 3], [3, 0], [1, 0], [2, 1]]


def test_same_image_id_and_near_duplicates_are_no_neighbours():
    # cos 1 degree = 0.99985 is above the default bound of 0.999, cos 5 degrees = 0.99619 below.
    embeds = on_circle(0, 1, 6, 20)
    assert mine_neighbours(with_ids(*"abcd"), embeds, 1)["neighbours"][:] == [[2], [2], [1], [2]]
    assert mine_neighbours(with_ids(*"abcd"), embeds, 1, max_similarity=1.0)["neighbours"][:] == [[1], [0], [1], [2]]
    assert mine_neighbours(with_ids(*"abbd"), embeds, 1)["neighbours"][:] == [[2], [3], [0], [2]]


def test_a_cosine_rounded_above_one_is_within_a_bound_of_one():
    vectors = torch.nn.functional.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    same = next(pair for pair in (vector.expand(2, -1) for vector in vectors) if (pair @ pair.T).min() > 1)
    assert mine_neighbours(with_ids(*"ab"), same, 1, max_similarity=1.0)["neighbours"][:] == [[1], [0]]


def test_few_candidates_give_shorter_lists_and_a_warning(caplog):
    # cos 60 = 0.5, cos 70 = 0.342: row 0 has one candidate above 0.4; row 2, at 180, none.
    mined = mine_neighbours(with_ids(*"abc"), on_circle(0, 60, 180), num_neighbours=5, min_similarity=0.4)
    assert mined["neighbours"][:] == [[1], [0], []]
    assert "3 of 3 images got fewer than 5 neighbours" in caplog.text
    assert mine_neighbours(with_ids("a"), on_circle(0))["neighbours"][:] == [[]]
    assert mine_neighbours(with_ids(*"ab"), on_circle(0, 90), first_rank=4)["neighbours"][:] == [[], []]


def test_summary_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        mine_neighbours(with_ids(*"abcd"), on_circle(0, 1, 90, 150), num_neighbours=1)
    # Rank 1: cos 90 = 0, cos 89 = 0.0175, cos 60 = 0.5, cos 60 = 0.5; mean 0.254. Rows 0 and 1 are near duplicates.
    assert "rank 1: 0.254" in caplog.text
    assert "left out for 50.0% of the images" in caplog.text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 8)), min_size=1, max_size=14),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([-1.0, -0.5, 0.0, 0.5]),
    st.sampled_from([0.5, 0.999, 1.0]),
    st.integers(1, 15),
)
def test_against_the_definition_with_many_ties(rows, num_neighbours, first_rank, low, high, part_rows):
    embeds = torch.stack([EXACT[vector] for vector, _ in rows])
    ids = [str(image_id) for _, image_id in rows]
    with unittest.mock.patch("hf_distinct.data.mining.PART_ROWS", part_rows):
        mined = mine_neighbours(with_ids(*ids), embeds, num_neighbours, first_rank, low, high)
    assert mined["neighbours"][:] == slow(ids, embeds, num_neighbours, first_rank, low, high)


def test_other_columns_stay_and_old_neighbours_go():
    dataset = Dataset.from_dict({"image_id": ["a", "b"], "row": [0, 1], "neighbours": [[7], [8]], "x": ["p", "q"]})
    mined = mine_neighbours(dataset, on_circle(0, 90), 1)
    assert mined[0] == {"image_id": "a", "row": 0, "x": "p", "neighbours": [1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_neighbours": 0}, "num_neighbours=0"),
        ({"first_rank": 0}, "first_rank=0"),
        ({"min_similarity": 0.9, "max_similarity": 0.1}, "min_similarity=0.9"),
        ({"embeddings": on_circle(0)}, r"shape \(1, 2\) do not fit 2 rows"),
        ({"embeddings": on_circle(0, 1) * torch.tensor([[1.0], [2.0]])}, "row 1 has 2.0"),
        ({"embeddings": on_circle(0, float("nan"))}, "row 1 has nan"),
        ({"dataset": Dataset.from_dict({"image_id": ["a", "b"], "row": [1, 0]})}, "'row' is not 0, 1, 2"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"dataset": with_ids(*"ab"), "embeddings": on_circle(0, 1)} | change
    with pytest.raises(ValueError, match=message):
        mine_neighbours(**arguments)
