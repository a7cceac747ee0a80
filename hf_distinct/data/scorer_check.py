"""Check whether the scorer retrieves images by people's captions; if it cannot, its reward is useless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers.utils import logging

from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.hashing import stable_hash
from hf_distinct.evaluation.retrieval import retrieval_ranks

logger = logging.get_logger(__name__)

GALLERY = 1000
"""Number of images that a caption is compared with: the size of the smaller standard COCO gallery."""
LEAST = 0.1
"""R@1 below which a scorer is reported: published CLIPs reach 0.5 to 0.7 on COCO among 1,000 images."""


@dataclass(frozen=True)
class ScorerCheck:
    """How well a scorer retrieves images by people's captions.

    Attributes:
        recall_at_1: fraction of captions whose image has rank 1; a tie counts against the scorer.
        gallery: number of images ranked.
        captions: number of captions used as queries.
    """

    recall_at_1: float
    gallery: int
    captions: int

    @property
    def chance(self) -> float:
        """R@1 of a random ranking."""
        return 1 / self.gallery

    @property
    def is_blind(self) -> bool:
        """Whether RL with this scorer cannot work: R@1 is below 0.1, or not ten times above chance."""
        return self.recall_at_1 < min(0.5, max(LEAST, 10 * self.chance))

    def warn(self, scorer: str) -> None:
        """Log the result; if the scorer is blind, log a warning that says what to do."""
        result = (
            f"R@1 of {self.captions} captions by people, among {self.gallery} images, under {scorer}: "
            f"{self.recall_at_1:.3f} (chance {self.chance:.3f})."
        )
        if not self.is_blind:
            logger.info(result)
            return
        logger.warning(
            f"{result} The scorer can hardly retrieve in this domain, so its reward is useless. Fine-tune "
            "a CLIP on your captions first (hf-distinct train-clip --dataset ... --model ViT-B-32:openai --output_dir "
            "MY_SCORER), then pass --scorer MY_SCORER here and to the training."
        )


def check_scorer(embeddings: CaptionEmbeddings, image_ids: Sequence[str], gallery: int = GALLERY) -> ScorerCheck:
    """Rank images by similarity to each caption, and measure how often the caption's own image has rank 1.

    Args:
        embeddings: embeddings of N images and their captions.
        image_ids: (N,); rows with the same id are one image, of which the first row is used.
        gallery: maximum number of images ranked; if there are more, a fixed sample is drawn by id.

    Returns:
        Text-to-image R@1 of all captions of the ranked images.

    Raises:
        ValueError: there are fewer than two images.
    """
    first = {image_id: row for row, image_id in reversed(list(enumerate(image_ids)))}
    if len(first) < 2:
        raise ValueError(f"{len(first)} image is not enough to measure retrieval.")
    chosen = sorted(first, key=lambda image_id: (stable_hash(f"gallery:{image_id}"), image_id))[:gallery]
    rows = torch.tensor([first[image_id] for image_id in chosen])
    begins, ends = embeddings.caption_offsets[rows], embeddings.caption_offsets[rows + 1]
    places = np.concatenate([np.arange(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
    targets = torch.arange(len(rows)).repeat_interleave(ends - begins)
    ranks = retrieval_ranks(embeddings.captions(torch.from_numpy(places)), embeddings.images(rows), targets)
    return ScorerCheck(float((ranks == 1).double().mean()), len(rows), len(places))
