"""Measures of captions: retrieval, agreement with people's captions, diversity.

The files here are pure functions on tensors and strings; `modules/` holds the same as metrics for `evaluate.load`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .captions import CiderD, bleu, cider_d, rouge_l, tokenize
from .diversity import distinct_n, mean_length, unique_share, vocabulary
from .retrieval import retrieval_metrics, retrieval_ranks

__all__ = [
    "CiderD",
    "bleu",
    "caption_metrics",
    "cider_d",
    "distinct_n",
    "mean_length",
    "retrieval_metrics",
    "retrieval_ranks",
    "rouge_l",
    "tokenize",
    "unique_share",
    "vocabulary",
]


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the quality and diversity of a test set's captions.

    Args:
        captions: one caption for each image.
        references: the reference captions of each image.

    Returns:
        `CIDEr-D` (1.0 is "100"), `BLEU-4` and `ROUGE-L` (0 to 1), `vocabulary` (number of words), `mean_length` (words
        in a caption) and `unique` (share of captions that differ).

    Raises:
        ValueError: the two lists differ in length, are empty, or a row has no reference.
    """
    return {
        "CIDEr-D": cider_d(captions, references),
        "BLEU-4": bleu(captions, references)[3],
        "ROUGE-L": rouge_l(captions, references),
        "vocabulary": vocabulary(captions),
        "mean_length": mean_length(captions),
        "unique": unique_share(captions),
    }
