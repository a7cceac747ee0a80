"""The bootstrap against figures by hand, and against what theory says of a mean."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.evaluation.bootstrap import difference, draws, interval, mean_of, median_of, resample, value_of
from hf_distinct.evaluation.captions import bleu, bleu_statistic
from hf_distinct.evaluation.diversity import different, distinct_n, ngrams_of, vocabulary
from hf_distinct.evaluation.ngram_counts import NgramCounts

CAPTIONS = ["a red dog", "a cat", "a cat", "the dog the dog", ""]
REFERENCES = [["a red dog runs"], ["a cat", "the cat"], ["a blue bird"], ["the dog"], ["a bus"]]
counts_of_images = st.lists(st.integers(0, 3), min_size=5, max_size=5).filter(any)


@settings(deadline=None)
@given(counts_of_images)
def test_a_statistic_is_the_figure_of_the_images_that_were_drawn(times):
    weights = np.array([times], dtype=float)
    captions = [caption for caption, count in zip(CAPTIONS, times, strict=True) for _ in range(count)]
    references = [own for own, count in zip(REFERENCES, times, strict=True) for _ in range(count)]
    numbers = [number for number, count in zip([3.0, 1.0, 2.0, 2.0, 9.0], times, strict=True) for _ in range(count)]
    assert mean_of([3, 1, 2, 2, 9])(weights)[0] == pytest.approx(statistics.mean(numbers))
    assert median_of([3, 1, 2, 2, 9])(weights)[0] == statistics.median(numbers)
    counts = NgramCounts(CAPTIONS, REFERENCES).bleu()
    assert [bleu_statistic(counts, n)(weights)[0] for n in (1, 2, 3, 4)] == pytest.approx(bleu(captions, references))
    assert different(*ngrams_of(CAPTIONS, 1))(weights)[0] == vocabulary(captions)
    share = different(*ngrams_of(CAPTIONS, 2), share=True)
    assert share(weights)[0] == pytest.approx(distinct_n(captions, 2))


def test_several_draws_at_once_are_each_by_itself():
    weights = np.array([[1.0, 1, 1, 1, 1], [0, 0, 2, 3, 0], [5, 0, 0, 0, 0]])
    for each in (median_of([3, 1, 2, 2, 9]), different(*ngrams_of(CAPTIONS, 1), share=True)):
        assert each(weights).tolist() == [each(row[None])[0] for row in weights]


def test_draws():
    drawn = np.concatenate(list(draws(7, 120, seed=3)))
    assert drawn.shape == (120, 7) and (drawn.sum(axis=1) == 7).all() and drawn.max() > 1
    assert (np.concatenate(list(draws(7, 120, seed=3))) == drawn).all()
    assert (np.concatenate(list(draws(7, 120, seed=4))) != drawn).any()
    generator = np.random.default_rng(3)
    for times in drawn:  # the same draws, however many are made at a time
        assert times.tolist() == np.bincount(generator.integers(7, size=7), minlength=7).tolist()


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    found = interval(values.mean(), resample({"x": mean_of(values)}, 400, 4000)["x"])
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_an_interval_holds_a_vocabulary_that_no_draw_reaches():
    words = different(np.arange(50), np.ones(50, dtype=int))
    drawn = resample({"vocabulary": words}, 50, 200)["vocabulary"]
    assert drawn.max() < 50
    found = interval(value_of(words, 50), drawn)
    assert found.low < found.value == 50 < found.high


def test_a_paired_difference_is_narrower_than_the_systems_own_intervals():
    hard = np.random.default_rng(0).normal(size=300)
    first, second = mean_of(hard + 0.1), mean_of(hard)
    drawn = resample({"first": first, "second": second}, 300)
    found = difference((value_of(first, 300), drawn["first"]), (value_of(second, 300), drawn["second"]))
    assert found == pytest.approx((0.1, 0.1, 0.1))
    alone = interval(value_of(first, 300), drawn["first"])
    assert alone.high - alone.low > 0.2


def test_wrong_numbers():
    with pytest.raises(ValueError, match="at least 2 draws; got 3 and 1"):
        resample({}, 3, 1)
    with pytest.raises(ValueError, match="got 0 and 1000"):
        resample({}, 0)
