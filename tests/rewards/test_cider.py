"""CIDEr-D as a reward."""

from __future__ import annotations

import math

import pytest
import torch

from hf_distinct.evaluation.captions import CiderD
from hf_distinct.rewards import CiderReward

CORPUS = [["red dog"], ["red cat"], ["blue bird"]]


def test_by_hand(make_batch):
    # "red dog" against itself, with its end a third word: the cosine is 1 for n = 1, 2 and 3: 10 * (1 + 1 + 1 + 0) / 4
    # "red cat" against "red dog": "red" is in 2 of 3 images, "dog" and "cat" in 1, the end in all, where it weighs
    # log(3/3) = 0, so the cosine for n = 1 is log(3/2)^2 / (log(3/2)^2 + log(3)^2), for n > 1 it is 0. "bird" shares
    # nothing but the end.
    batch = make_batch(
        texts=tuple(((1.0, 0.0), i, i) for i in range(3)),
        images=((1.0, 0.0),) * 3,
        captions=["red dog", "red cat", "bird"],
        references=[["red dog"]] * 3,
    )
    common, rare = math.log(3 / 2) ** 2, math.log(3) ** 2
    result = CiderReward(CORPUS)(batch)
    assert result.dtype == torch.float32
    assert result.tolist() == pytest.approx([7.5, 10 * common / (common + rare) / 4, 0.0], abs=1e-6)


def test_a_fragment_loses_by_its_end(make_batch):
    # "red dog with" against "red dog": n = 1: "red" and "dog" shared, "with" and "dog" equally rare. n = 2: of "red
    # dog", "dog with", "with END" and "red dog", "dog END" one is shared; the metric has no END. n = 3: the metric has
    # none in the reference, the reward none in common. One word more: exp(-1 / 72).
    batch = make_batch(captions=["red dog with", "red dog"], references=[["red dog"]] * 2)
    common, rare = math.log(3 / 2) ** 2, math.log(3) ** 2
    words, penalty = math.sqrt((common + rare) / (common + 2 * rare)), math.exp(-1 / 72)
    rewarded = CiderReward(CORPUS)(batch).tolist()
    assert rewarded == pytest.approx([2.5 * penalty * (words + 1 / math.sqrt(6)), 7.5], abs=1e-6)
    metric = CiderD(CORPUS).scores(batch.captions, batch.references)
    assert metric == pytest.approx([2.5 * penalty * (words + 1 / math.sqrt(2)), 5.0], abs=1e-6)


def test_it_is_the_metric_with_the_frequencies_of_the_corpus_and_an_end(make_batch):
    captions, references = ["a red dog runs", "a cat"], [["red dog", "a dog runs fast"], ["blue cat", "a cat"]]
    corpus, *ended = [[[f"{text} theend" for text in own] for own in rows] for rows in (CORPUS, references)]
    expected = CiderD(corpus).scores([f"{caption} theend" for caption in captions], *ended)
    reward = CiderReward(CORPUS)
    assert reward(make_batch(captions=captions, references=references)).tolist() == pytest.approx(expected, rel=1e-6)
    # the same caption gets the same reward in a batch of other company
    swapped = make_batch(captions=["bird", captions[0]], references=[["blue bird"], references[0]])
    assert reward(swapped)[1].item() == pytest.approx(expected[0], rel=1e-6)


def test_a_caption_cannot_spell_the_end(make_batch):
    batch = make_batch(captions=["red dog", "red dog \n"], references=[["red dog"]] * 2)
    assert CiderReward(CORPUS)(batch).tolist() == pytest.approx([7.5, 7.5])


def test_in_chinese_a_character_is_a_word(make_batch):
    """By hand: 狗跑 against itself is 1 for n = 1 to 3. 猫跑 shares 跑, and 跑 with its end, both in 2 of 3 images."""
    reward = CiderReward([["狗跑"], ["猫跑"], ["鸟飞"]])
    batch = make_batch(captions=["狗跑。", "猫跑"], references=[["狗跑"], ["狗跑"]])
    common, rare = math.log(3 / 2) ** 2, math.log(3) ** 2
    assert reward(batch).tolist() == pytest.approx([7.5, 10 / 4 * 2 * common / (common + rare)], abs=1e-6)


def test_it_needs_a_baseline():
    assert not CiderReward(CORPUS).is_advantage
