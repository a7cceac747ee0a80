"""Diversity of captions, counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.evaluation.captions import bleu
from hf_distinct.evaluation.diversity import (
    distinct_n,
    mean_length,
    novel,
    novelty,
    self_bleu,
    self_bleu_scores,
    unique_share,
    vocabulary,
)

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


def test_self_bleu_by_hand():
    assert self_bleu(["a b c d"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d", "e f g h"]) == pytest.approx(0.0, abs=1e-6)
    # Two of three words of each are in the other, in a row: 2/3 and 1/2.
    assert self_bleu(["a b c", "a b d"], max_n=2) == pytest.approx((2 / 3 * 1 / 2) ** 0.5)
    with pytest.raises(ValueError, match="at least two"):
        self_bleu(["a"])


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6).map(" ".join), min_size=2, max_size=6))
def test_self_bleu_is_bleu_against_all_others(captions):
    expected = [bleu([caption], [captions[:i] + captions[i + 1 :]])[3] for i, caption in enumerate(captions)]
    assert self_bleu_scores(captions) == pytest.approx(expected)


def test_novelty_by_hand():
    assert novel(["A dog.", "a dog", "a red dog"], ["a dog", "the cat"]) == [False, False, True]
    assert novelty(["A dog.", "a dog", "a red dog"], ["a dog", "the cat"]) == pytest.approx(1 / 3)
    assert novel(["A dog.", "a cat"], iter(["a dog"])) == [False, True]
    for captions, training in (([], ["a"]), (["a"], []), (["a"], "a"), (["a"], iter([]))):
        with pytest.raises(ValueError, match="at least one caption"):
            novelty(captions, training)
