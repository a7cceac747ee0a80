"""CIDEr-D as a reward."""

from __future__ import annotations

import math

import pytest
import torch

from hf_distinct.evaluation.captions import CiderD
from hf_distinct.rewards import CiderReward

CORPUS = [["red dog"], ["red cat"], ["blue bird"]]


def test_by_hand(make_batch):
    # "red dog" against itself: the cosine is 1 for n = 1 and 2, there are no longer n-grams: 10 * (1 + 1 + 0 + 0) / 4
    # "red cat" against "red dog": "red" is in 2 of 3 images, "dog" and "cat" in 1, so the cosine for n = 1 is
    # log(3/2)^2 / (log(3/2)^2 + log(3)^2), for n = 2 it is 0. "bird" shares nothing.
    batch = make_batch(
        texts=tuple(((1.0, 0.0), i, i) for i in range(3)),
        images=((1.0, 0.0),) * 3,
        captions=["red dog", "red cat", "bird"],
        references=[["red dog"]] * 3,
    )
    common, rare = math.log(3 / 2) ** 2, math.log(3) ** 2
    result = CiderReward(CORPUS)(batch)
    assert result.dtype == torch.float32
    assert result.tolist() == pytest.approx([5.0, 10 * common / (common + rare) / 4, 0.0], abs=1e-6)


def test_it_is_the_metric_of_the_evaluation_with_the_frequencies_of_the_corpus(make_batch):
    captions, references = ["a red dog runs", "a cat"], [["red dog", "a dog runs fast"], ["blue cat", "a cat"]]
    metric = CiderD(CORPUS)
    expected = [metric.score(c, r) for c, r in zip(captions, references, strict=True)]
    reward = CiderReward(CORPUS)
    assert reward(make_batch(captions=captions, references=references)).tolist() == pytest.approx(expected, rel=1e-6)
    # the same caption gets the same reward in a batch of other company
    swapped = make_batch(captions=["bird", captions[0]], references=[["blue bird"], references[0]])
    assert reward(swapped)[1].item() == pytest.approx(expected[0], rel=1e-6)


def test_it_needs_a_baseline():
    assert not CiderReward(CORPUS).is_advantage
