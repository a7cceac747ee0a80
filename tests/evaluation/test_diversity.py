"""Diversity of captions, counted by hand."""

from __future__ import annotations

import pytest

from hf_distinct.evaluation.diversity import distinct_n, mean_length, unique_share, vocabulary

CAPTIONS = ["A dog.", "a dog", "a cat on a mat"]


def test_by_hand():
    assert vocabulary(CAPTIONS) == 5  # a, dog, cat, on, mat
    assert unique_share(CAPTIONS) == pytest.approx(2 / 3)  # case and the full stop make no difference
    assert mean_length(CAPTIONS) == pytest.approx((2 + 2 + 5) / 3)
    assert distinct_n(CAPTIONS, 1) == pytest.approx(5 / 9)
    assert distinct_n(CAPTIONS) == pytest.approx(5 / 6)  # "a dog" twice; "a cat", "cat on", "on a", "a mat"
    assert distinct_n(CAPTIONS, 5) == 1.0


def test_empty_captions_have_no_words():
    assert vocabulary(["", "!"]) == 0
    assert mean_length(["", "a b"]) == 1.0
    assert unique_share(["", "!"]) == 0.5
    assert distinct_n(["", "a"], 2) == 0.0


@pytest.mark.parametrize("measure", [vocabulary, unique_share, mean_length, distinct_n])
@pytest.mark.parametrize("captions", [[], "a dog"])
def test_not_a_list_of_captions(measure, captions):
    with pytest.raises(ValueError, match="a list with at least one caption"):
        measure(captions)


def test_wrong_n():
    with pytest.raises(ValueError, match="n = 0"):
        distinct_n(CAPTIONS, 0)
