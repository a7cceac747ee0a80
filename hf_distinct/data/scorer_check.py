"""Can the scorer find a picture by what a person said of it? Where it cannot, its reward teaches nothing."""

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
"""Pictures that a caption is looked for among: the size of the field's smaller COCO gallery."""
LEAST = 0.1
"""R@1 below which a scorer is warned about: published CLIPs reach 0.5 to 0.7 on COCO among 1,000 pictures."""


@dataclass(frozen=True)
class ScorerCheck:
    """How well people's captions find their picture under a scorer.

    Attributes:
        recall_at_1: Share of the captions whose picture comes first; a tie counts against the scorer.
        gallery: Pictures that are ranked.
        captions: Captions that ask.
    """

    recall_at_1: float
    gallery: int
    captions: int

    @property
    def chance(self) -> float:
        """What a blind scorer would reach."""
        return 1 / self.gallery

    @property
    def is_blind(self) -> bool:
        """Whether reinforcement learning on this scorer cannot work: below 0.1, or not ten times above chance."""
        return self.recall_at_1 < min(0.5, max(LEAST, 10 * self.chance))

    def warn(self, scorer: str) -> None:
        """Log the result, as a warning with a way out if the scorer is blind here."""
        told = (
            f"R@1 of {self.captions} captions people wrote, among {self.gallery} pictures, under {scorer}: "
            f"{self.recall_at_1:.3f} (chance {self.chance:.3f})."
        )
        if not self.is_blind:
            logger.info(told)
            return
        logger.warning(
            f"{told} It can hardly retrieve in this domain, so its reward would teach a captioner nothing. Fine-tune "
            "one on your captions first (hf-distinct train-clip --dataset ... --model ViT-B-32:openai --output_dir "
            "MY_SCORER), then give --scorer MY_SCORER here and to the training."
        )


def check_scorer(embeddings: CaptionEmbeddings, image_ids: Sequence[str], gallery: int = GALLERY) -> ScorerCheck:
    """Rank pictures by their similarity to each caption, and see how often the caption's own comes first.

    Args:
        embeddings: Of N images and their captions.
        image_ids: (N,) rows of the same id are one picture; the first of them is taken.
        gallery: Most pictures ranked; of more, a sample is drawn by their ids, always the same.

    Returns:
        R@1 text to image, of all captions of the pictures ranked.

    Raises:
        ValueError: There are fewer than two pictures.
    """
    first = {image_id: row for row, image_id in reversed(list(enumerate(image_ids)))}
    if len(first) < 2:
        raise ValueError(f"{len(first)} picture is not enough to tell whether captions find theirs.")
    chosen = sorted(first, key=lambda image_id: (stable_hash(f"gallery:{image_id}"), image_id))[:gallery]
    rows = torch.tensor([first[image_id] for image_id in chosen])
    begins, ends = embeddings.caption_offsets[rows], embeddings.caption_offsets[rows + 1]
    places = np.concatenate([np.arange(begin, end) for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)])
    targets = torch.arange(len(rows)).repeat_interleave(ends - begins)
    ranks = retrieval_ranks(embeddings.captions(torch.from_numpy(places)), embeddings.images(rows), targets)
    return ScorerCheck(float((ranks == 1).double().mean()), len(rows), len(places))
