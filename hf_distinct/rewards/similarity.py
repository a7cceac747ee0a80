"""The cosine similarity of caption and image as a reward (CLIP-S, arXiv 2205.13115)."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_distinct.rewards.base import RewardBatch


class SimilarityReward:
    """Cosine of the CLIP embeddings of a caption and its image, in [-1, 1]. The pools are not used.

    It is not an advantage: use a baseline. It does not require that a caption fits other images worse;
    [`ContrastiveReward`] does.
    """

    name = "similarity"
    is_advantage = False

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,)."""
        dtype = torch.promote_types(batch.text_embeds.dtype, torch.float32)
        return (batch.text_embeds.to(dtype) * batch.image_embeds.to(dtype)).sum(dim=-1)
