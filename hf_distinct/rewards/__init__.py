"""Rewards, one per file. All of them follow the small protocol [`Reward`]."""

from __future__ import annotations

from hf_distinct.rewards.base import ImagePool, Reward, RewardBatch, TextKind, TextPool
from hf_distinct.rewards.callable import CallableReward
from hf_distinct.rewards.cider import CiderReward
from hf_distinct.rewards.contrastive import ContrastiveReward, contrastive_log_odds
from hf_distinct.rewards.resolve import BUILT_IN_REWARDS, resolve_reward
from hf_distinct.rewards.similarity import SimilarityReward

__all__ = [
    "BUILT_IN_REWARDS",
    "CallableReward",
    "CiderReward",
    "ContrastiveReward",
    "ImagePool",
    "Reward",
    "RewardBatch",
    "SimilarityReward",
    "TextKind",
    "TextPool",
    "contrastive_log_odds",
    "resolve_reward",
]
