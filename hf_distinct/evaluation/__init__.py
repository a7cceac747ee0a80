"""Metrics of captions: retrieval, agreement with references, diversity, faults; and their confidence intervals.

The modules here are pure functions of tensors and strings; `modules/` has the same metrics for `evaluate.load`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from hf_distinct.evaluation.bootstrap import Statistic, mean_of, value_of
from hf_distinct.evaluation.captions import CiderD, bleu, bleu_statistic, cider_d, rouge_l, rouge_l_scores
from hf_distinct.evaluation.clip_score import clip_scores, ref_clip_scores
from hf_distinct.evaluation.diversity import (
    different,
    distinct_n,
    mean_length,
    ngrams_of,
    novelty,
    self_bleu,
    self_bleu_scores,
    unique_share,
    vocabulary,
)
from hf_distinct.evaluation.faults import bad_endings, repeats, seem_english
from hf_distinct.evaluation.invention import invention, invention_statistic
from hf_distinct.evaluation.ngram_counts import NgramCounts
from hf_distinct.evaluation.ptb_tokenizer import ptb_line, tokenize
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
        references = list(references["captions"])
    scores = rouge_l_scores(captions, references)
    ngrams = NgramCounts(captions, references)
    counts = ngrams.bleu()
    statistics = {"CIDEr-D": mean_of(ngrams.cider_d())}
    statistics |= {f"BLEU-{n}": bleu_statistic(counts, n) for n in range(1, 5)}
    statistics |= {
        "ROUGE-L": mean_of(scores),
        "vocabulary": different([tokenize(caption) for caption in captions]),
        "mean_length": mean_of([len(tokenize(caption)) for caption in captions]),
        "unique": different([[ptb_line(caption)] for caption in captions], share=True),
        "distinct_1": different(ngrams_of(captions, 1), share=True),
        "distinct_2": different(ngrams_of(captions, 2), share=True),
    }
    if len(captions) > 1:
        statistics["self_BLEU"] = mean_of(self_bleu_scores(captions))
    if not seem_english([text for own in references for text in own]):
        logger.warning_once(
            "The captions do not seem to be English: bad_endings and invention only know English words, so their "
            "values are meaningless."
        )
    return statistics | {
        "bad_endings": mean_of(bad_endings(captions)),
        "repeats": mean_of(repeats(captions)),
        "invention": invention_statistic(captions, references),
    }
