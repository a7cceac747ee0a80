"""The best of a captioner's samples by the reward."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from hf_distinct import ClipScorer, RLCaptionConfig
from hf_distinct.gallery import Gallery
from hf_distinct.rewards import CallableReward
from hf_distinct.training.ceiling import Ceiling

COUNT = 3


@pytest.fixture(scope="module")
def gallery(tiny_models):
    return Gallery(tiny.scenes(6), {"judge": ClipScorer(str(tiny_models / "scorer"))}, num_neighbours=2)


def make(tiny_models, tmp_path, rewards, **settings):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    args = RLCaptionConfig(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, max_new_tokens=8, **settings)
    torch.manual_seed(0)
    return Ceiling(
        model, tokenizer, image_processor, args, scorer=ClipScorer(str(tiny_models / "scorer")), rewards=rewards,
        references_corpus=tiny.scenes(6)["captions"],
    )  # fmt: skip


def test_the_best_by_the_reward_are_measured(tiny_models, tmp_path, gallery):
    """A reward that counts letters: the longest of the samples is chosen; the rest are means."""
    letters = CallableReward(lambda captions: [float(len(text)) for text in captions], "letters")
    ceiling = make(tiny_models, tmp_path, [letters], reward_weights=[2.0])
    greedy, samples, rewards = ceiling.samples(gallery, COUNT)
    assert [len(own) for own in samples] == [COUNT] * 6 and len(greedy) == 6
    assert rewards.tolist() == [[2.0 * len(text) for text in own] for own in samples]  # no discriminator's share
    assert len({text for own in samples for text in own}) > 6
    torch.manual_seed(0)
    found = ceiling.measure(gallery, COUNT)
    assert list(found) == ["greedy", "a sample", "best of 3"]
    torch.manual_seed(0)
    greedy, samples, rewards = ceiling.samples(gallery, COUNT)
    assert found["best of 3"] == gallery.measure([max(own, key=len) for own in samples])
    assert found["greedy"] == gallery.measure(greedy)
    lengths = [gallery.measure([own[place] for own in samples])["mean_length"] for place in range(COUNT)]
    assert found["a sample"]["mean_length"] == pytest.approx(sum(lengths) / COUNT)


def test_rewards_are_those_of_a_batch_of_the_training(tiny_models, tmp_path, gallery):
    """Of the second batch, of two images, the memory still holds the first."""
    captions = []
    for memory in (0, 1):
        ceiling = make(tiny_models, tmp_path, ["contrastive"], memory_batches=memory, pool_greedy=True)
        captions.append(ceiling.samples(gallery, COUNT))
    (_, samples, alone), (_, same, remembered) = captions
    assert samples == same and np.isfinite(alone).all()
    assert np.array_equal(alone[:4], remembered[:4]) and not np.array_equal(alone[4:], remembered[4:])


def test_a_low_temperature_draws_greedy_captions(tiny_models, tmp_path, gallery):
    greedy, samples, _ = make(tiny_models, tmp_path, ["similarity"], temperature=1e-3).samples(gallery, COUNT)
    assert samples == [[text] * COUNT for text in greedy]
