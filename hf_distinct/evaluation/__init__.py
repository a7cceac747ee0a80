"""Metrics of captions: retrieval, agreement with references, diversity, faults; and their confidence intervals.

The modules here are pure functions of tensors and strings; `modules/` has the same metrics for `evaluate.load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from hf_distinct.evaluation.blocks import check_rows, in_blocks
from hf_distinct.evaluation.bootstrap import Statistic, mean_of, value_of
from hf_distinct.evaluation.captions import CiderD, bleu, bleu_statistic, cider_d, rouge_l, rouge_l_scores
from hf_distinct.evaluation.clip_score import clip_scores, ref_clip_scores
from hf_distinct.evaluation.diversity import (
    different,
    distinct_n,
    lines_of,
    mean_length,
    ngrams_of,
    novelty,
    self_bleu,
    self_bleu_scores,
    unique_share,
    vocabulary,
)
from hf_distinct.evaluation.faults import are_english, bad_endings, english_words, repeats
from hf_distinct.evaluation.invention import invented, invention, invention_statistic
from hf_distinct.evaluation.ngram_counts import ngram_counts
from hf_distinct.evaluation.ptb_tokenizer import tokenize
from hf_distinct.evaluation.retrieval import neighbour_ranks, retrieval_metrics, retrieval_ranks

logger: Any = logging.get_logger(__name__)

__all__ = [
    "CiderD",
    "bad_endings",
    "bleu",
    "caption_metrics",
    "caption_statistics",
    "cider_d",
    "clip_scores",
    "distinct_n",
    "invention",
    "mean_length",
    "neighbour_ranks",
    "novelty",
    "ref_clip_scores",
    "repeats",
    "retrieval_metrics",
    "retrieval_ranks",
    "rouge_l",
    "self_bleu",
    "tokenize",
    "unique_share",
    "vocabulary",
]


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]] | Dataset) -> dict[str, float]:
    """Return the quality and diversity of the captions of a test set.

    Args:
        captions: one caption per image.
        references: the reference captions of each image, or a dataset with them in the column `captions`, as an
            `RLCaptionTrainer` passes it to `caption_metrics`.

    Returns:
        `CIDEr-D` (papers print 1.0 as 100), `BLEU-1` to `BLEU-4` and `ROUGE-L` (0 to 1), `vocabulary` (number of
        different words), `mean_length` (words per caption), `unique` (fraction of different captions), `distinct_1`
        and `distinct_2` (fraction of different words and word pairs), `self_BLEU` (0 to 1; needs two captions),
        `bad_endings` and `repeats` (fraction of captions that stop in mid-phrase, in English, or repeat words), and
        `invention` (fraction of content words, in English, that no reference of the image contains).

    Raises:
        ValueError: the two lists differ in length, are empty, or a row has no reference.
    """
    metrics = {k: value_of(each, len(captions)) for k, each in caption_statistics(captions, references).items()}
    return metrics | {"vocabulary": int(metrics["vocabulary"])}


def caption_statistics(
    captions: Sequence[str], references: Sequence[Sequence[str]] | Dataset
) -> dict[str, Statistic]:
    """Return the metrics of `caption_metrics` as functions of the images in the test set, for the bootstrap.

    The document frequencies of CIDEr-D remain those of the whole test set, and self-BLEU compares with all captions.

    Raises:
        ValueError: see `caption_metrics`.
    """
    if isinstance(references, Dataset):
        references = references["captions"]
    check_rows(captions, references)
    diversity = _diversity(captions)  # first, since it takes most memory for a moment
    parts = [
        {
            "CIDEr-D": counts.cider_d(),
            "BLEU": counts.bleu(),
            "ROUGE-L": np.array(rouge_l_scores(ours, theirs)),
            "bad_endings": np.array(bad_endings(ours)),
            "repeats": np.array(repeats(ours)),
            "invention": np.array(invented(ours, theirs)),
            "english": np.array([english_words([text for own in theirs for text in own])]),
        }
        for ours, theirs, counts in zip(
            in_blocks(captions), in_blocks(references), ngram_counts(captions, references), strict=True
        )
    ]
    of_images = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    statistics = {"CIDEr-D": mean_of(of_images["CIDEr-D"])}
    statistics |= {f"BLEU-{n}": bleu_statistic(of_images["BLEU"], n) for n in range(1, 5)}
    statistics |= {"ROUGE-L": mean_of(of_images["ROUGE-L"])} | diversity
    if not are_english(*of_images["english"].sum(axis=0).tolist()):
        logger.warning_once(
            "The captions do not seem to be English: bad_endings and invention only know English words, so their "
            "values are meaningless."
        )
    return statistics | {
        "bad_endings": mean_of(of_images["bad_endings"]),
        "repeats": mean_of(of_images["repeats"]),
        "invention": invention_statistic(of_images["invention"]),
    }


def _diversity(captions: Sequence[str]) -> dict[str, Statistic]:
    words, lengths = ngrams_of(captions, 1)
    found = {
        "vocabulary": different(words, lengths),
        "mean_length": mean_of(lengths),
        "unique": different(lines_of(captions), np.ones(len(captions), dtype=np.int64), share=True),
        "distinct_1": different(words, lengths, share=True),
        "distinct_2": different(*ngrams_of(captions, 2), share=True),
    }
    if len(captions) > 1:
        found["self_BLEU"] = mean_of(self_bleu_scores(captions))
    return found
