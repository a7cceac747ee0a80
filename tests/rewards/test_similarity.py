"""The similarity reward by hand."""

from __future__ import annotations

import pytest
import torch

from hf_distinct.rewards import SimilarityReward


def test_by_hand(make_batch):
    # (0.6, 0.8) with (1, 0), with (0.8, 0.6): 0.48 + 0.48, and with (0, -1)
    batch = make_batch(
        texts=(((0.6, 0.8), 1, 1), ((0.6, 0.8), 1, 2), ((0.6, 0.8), 1, 3)),
        images=((1.0, 0.0), (0.8, 0.6), (0.0, -1.0)),
        logit_scale=100.0,  # plays no part, nor do the pools
    )
    assert SimilarityReward()(batch).tolist() == pytest.approx([0.6, 0.96, -0.8], abs=1e-15)
    assert not SimilarityReward().is_advantage


def test_half_precision_is_raised(make_batch):
    batch = make_batch()
    batch.text_embeds, batch.image_embeds = batch.text_embeds.half(), batch.image_embeds.half()
    assert SimilarityReward()(batch).dtype == torch.float32
