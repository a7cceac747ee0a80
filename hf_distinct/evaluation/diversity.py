"""Diversity of captions: captions may all be correct and still say the same about every image.

Texts are split by `hf_distinct.evaluation.ptb_tokenizer.tokenize`, so case and punctuation do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from hf_distinct.evaluation.bootstrap import Statistic
from hf_distinct.evaluation.captions import bleu_of_counts
from hf_distinct.evaluation.ptb_tokenizer import ptb_line, tokenize


def vocabulary(captions: Sequence[str]) -> int:
    """Return the number of different words in all captions.

    Raises:
        ValueError: there are no captions.
    """
    return len({word for words in _tokenized(captions) for word in words})


def unique_share(captions: Sequence[str]) -> float:
    """Return the number of different captions divided by the number of captions, from 1 / len(captions) to 1.

    Raises:
        ValueError: there are no captions.
    """
    tokenized = _tokenized(captions)
    return len(set(map(tuple, tokenized))) / len(tokenized)


def mean_length(captions: Sequence[str]) -> float:
    """Return the mean number of words per caption.

    Raises:
        ValueError: there are no captions.
    """
    tokenized = _tokenized(captions)
    return sum(map(len, tokenized)) / len(tokenized)


def distinct_n(captions: Sequence[str], n: int = 2) -> float:
    """Return the number of different n-grams divided by the number of n-grams in all captions, from 0 to 1.

    (Li et al.: A Diversity-Promoting Objective Function for Neural Conversation Models, arXiv 1510.03055.) It
    decreases with the number of captions, so compare sets of equal size only. Captions too short for any n-gram give
    0.

    Raises:
        ValueError: there are no captions, or n is below 1.
    """
    ngrams = [ngram for row in ngrams_of(captions, n) for ngram in row]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def ngrams_of(captions: Sequence[str], n: int) -> list[list[tuple[str, ...]]]:
    """Return the n-grams of each caption, with repetitions.

    Raises:
        ValueError: there are no captions, or n is below 1.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, got n = {n}.")
    return [[tuple(words[i : i + n]) for i in range(len(words) - n + 1)] for words in _tokenized(captions)]


def self_bleu(captions: Sequence[str], max_n: int = 4) -> float:
    """Return the mean BLEU of each caption against all others: 1 if all are equal (arXiv 1802.01886).

    It increases with the number of captions, so compare sets of equal size only.

    Raises:
        ValueError: there are fewer than two captions.
    """
    scores = self_bleu_scores(captions, max_n)
    return sum(scores) / len(scores)


def self_bleu_scores(captions: Sequence[str], max_n: int = 4) -> list[float]:
    """Return BLEU-`max_n` of each caption with all others as its references, in linear time.

    Raises:
        ValueError: there are fewer than two captions.
    """
    tokenized = _tokenized(captions)
    if len(tokenized) < 2:
        raise ValueError("self-BLEU compares captions with each other: give at least two.")
    own = [
        Counter(tuple(words[i : i + n]) for n in range(1, max_n + 1) for i in range(len(words) - n + 1))
        for words in tokenized
    ]
    most: dict[tuple[str, ...], tuple[int, int]] = {}  # the two largest counts of an n-gram, from different captions
    for counts in own:
        for ngram, count in counts.items():
            first, second = most.get(ngram, (0, 0))
            if count > second:
                most[ngram] = (count, first) if count > first else (first, count)
    lengths = Counter(map(len, tokenized))
    rows = []
    for words, counts in zip(tokenized, own, strict=True):
        matches = [0] * max_n
        for ngram, count in counts.items():
            first, second = most[ngram]
            matches[len(ngram) - 1] += min(count, second if count == first else first)
        size = len(words)
        others = (length for length, captions_of in lengths.items() if length != size or captions_of > 1)
        closest = min((abs(length - size), length) for length in others)[1]
        rows.append([size, closest, *matches, *(max(0, size - n) for n in range(max_n))])
    return bleu_of_counts(np.array(rows, dtype=np.float64))[:, -1].tolist()


def novelty(captions: Sequence[str], training_captions: Sequence[str]) -> float:
    """Return the fraction of captions that are not training captions, ignoring case and punctuation.

    Raises:
        ValueError: there are no captions, or no training captions.
    """
    flags = novel(captions, training_captions)
    return sum(flags) / len(flags)


def novel(captions: Sequence[str], training_captions: Sequence[str]) -> list[bool]:
    """Return for each caption whether it is not a training caption; raises like `novelty`."""
    _tokenized(captions[:1])
    _tokenized(training_captions[:1])
    known = set(map(ptb_line, training_captions))
    return [ptb_line(caption) not in known for caption in captions]


def different(rows: Sequence[Sequence[Hashable]], share: bool = False) -> Statistic:
    """Return the number of different items as a function of the images in the test set.

    Args:
        rows: the items of each image's caption: words, n-grams, or the caption itself.
        share: divide by the number of all items.
    """
    numbers: dict[Hashable, int] = {}
    places = np.array([numbers.setdefault(item, len(numbers)) for row in rows for item in row], dtype=np.int64)
    sizes = np.array([len(row) for row in rows], dtype=np.float64)
    order = places.argsort(kind="stable")
    owners = np.repeat(np.arange(len(rows)), sizes.astype(np.int64))[order]
    starts = np.searchsorted(places[order], np.arange(len(numbers)))

    def count(weights: np.ndarray) -> np.ndarray:
        if not numbers:
            return np.zeros(len(weights))
        found = np.logical_or.reduceat((weights > 0)[:, owners], starts, axis=1).sum(axis=1).astype(np.float64)
        return found / np.maximum(weights @ sizes, 1.0) if share else found

    return count


def _tokenized(captions: Sequence[str]) -> list[list[str]]:
    if isinstance(captions, str) or not captions:
        raise ValueError(f"expected a list with at least one caption, got {captions!r}.")
    return [tokenize(caption) for caption in captions]
