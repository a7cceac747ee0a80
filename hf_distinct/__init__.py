"""Distinctive image captioning: CLIP-guided reinforcement learning of captioners with the Hugging Face Trainer.

The method is described in Chaffin, Kijak and Claveau, "Distinctive Image Captioning: Leveraging Ground Truth Captions
in CLIP Guided Reinforcement Learning" (arXiv 2402.13936). The names below are imported on first use (PEP 562), so
`import hf_distinct` is fast: torch and transformers are imported only when a name needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_distinct import _moved as _moved

if TYPE_CHECKING:
    from hf_distinct.config import RLCaptionConfig
    from hf_distinct.data import CaptionCollator, embed_dataset, ensure_splits, load_captions, mine_neighbours
    from hf_distinct.data.caption_embeddings import CaptionEmbeddings
    from hf_distinct.data.emoji.dataset import emoji_scenes
    from hf_distinct.discriminator import Discriminator
    from hf_distinct.evaluation import caption_metrics, retrieval_metrics
    from hf_distinct.gallery import Gallery
    from hf_distinct.generation.guidance import ImageGuidance
    from hf_distinct.hub.model_card import write_model_card
    from hf_distinct.hub.transfer import pull, push_folder
    from hf_distinct.inference.captioning import Captioner, caption
    from hf_distinct.inference.pipelines import pipeline
    from hf_distinct.reporting import write_contrast_sheet
    from hf_distinct.rewards import (
        CallableReward,
        CiderReward,
        ContrastiveReward,
        Reward,
        RewardBatch,
        SimilarityReward,
        resolve_reward,
    )
    from hf_distinct.scorer import ClipScorer, shipped
    from hf_distinct.trainer import RLCaptionTrainer

__version__ = "0.1.0"

__all__ = [
    "CallableReward",
    "CaptionCollator",
    "CaptionEmbeddings",
    "Captioner",
    "CiderReward",
    "ClipScorer",
    "ContrastiveReward",
    "Discriminator",
    "Gallery",
    "ImageGuidance",
    "RLCaptionConfig",
    "RLCaptionTrainer",
    "Reward",
    "RewardBatch",
    "SimilarityReward",
    "caption",
    "caption_metrics",
    "embed_dataset",
    "emoji_scenes",
    "ensure_splits",
    "load_captions",
    "mine_neighbours",
    "pipeline",
    "pull",
    "push_folder",
    "resolve_reward",
    "retrieval_metrics",
    "shipped",
    "write_contrast_sheet",
    "write_model_card",
]

_HOMES = {
    "config": ["RLCaptionConfig"],
    "data": ["CaptionCollator", "embed_dataset", "ensure_splits", "load_captions", "mine_neighbours"],
    "data.caption_embeddings": ["CaptionEmbeddings"],
    "data.emoji.dataset": ["emoji_scenes"],
    "discriminator": ["Discriminator"],
    "evaluation": ["caption_metrics", "retrieval_metrics"],
    "gallery": ["Gallery"],
    "generation.guidance": ["ImageGuidance"],
    "hub.model_card": ["write_model_card"],
    "hub.transfer": ["pull", "push_folder"],
    "inference.captioning": ["Captioner", "caption"],
    "inference.pipelines": ["pipeline"],
    "reporting": ["write_contrast_sheet"],
    "rewards": [
        "CallableReward", "CiderReward", "ContrastiveReward", "Reward", "RewardBatch", "SimilarityReward",
        "resolve_reward",
    ],
    "scorer": ["ClipScorer", "shipped"],
    "trainer": ["RLCaptionTrainer"],
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
