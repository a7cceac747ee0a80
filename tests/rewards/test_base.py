"""What a batch of rewards refuses."""

from __future__ import annotations

import pytest
import torch

from hf_distinct.rewards import CallableReward, ContrastiveReward, ImagePool, Reward, SimilarityReward, TextPool


def test_length(make_batch):
    assert len(make_batch()) == 2


def test_entries_must_belong_together(make_batch):
    with pytest.raises(ValueError, match="RewardBatch: references has 1 entries, expected 2"):
        make_batch(references=[["one"]])
    with pytest.raises(ValueError, match="RewardBatch: image_embeds has 1 entries, expected 2"):
        make_batch(images=((1.0, 0.0),))
    with pytest.raises(ValueError, match="RewardBatch: column 'weather' has 3 entries, expected 2"):
        make_batch(columns={"weather": ["sun", "rain", "snow"]})
    with pytest.raises(ValueError, match="TextPool: kinds has 1 entries, expected 2"):
        TextPool(torch.ones(2, 3), torch.arange(2), torch.arange(2), torch.zeros(1))
    with pytest.raises(ValueError, match="ImagePool: image_ids has 3 entries, expected 2"):
        ImagePool(torch.ones(2, 3), torch.arange(3))


@pytest.mark.parametrize("reward", [ContrastiveReward(), SimilarityReward(), CallableReward(len)])
def test_protocol(reward):
    assert isinstance(reward, Reward)


def test_a_plain_function_is_not_of_the_protocol():
    assert not isinstance(len, Reward)
