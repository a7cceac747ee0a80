"""Diversity of captions: captions may all be correct and still say the same about every image.

Texts are split by `hf_distinct.evaluation.ptb_tokenizer.tokenize`, so case and punctuation do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from hf_distinct.evaluation.blocks import in_blocks
from hf_distinct.evaluation.bootstrap import Statistic
from hf_distinct.evaluation.captions import bleu_of_counts
from hf_distinct.evaluation.document_frequencies import count_documents, numbered_repeats
from hf_distinct.evaluation.ngram_hashes import hashed, hashed_ngrams, hashed_words
from hf_distinct.evaluation.ptb_tokenizer import ptb_line, tokenize


def vocabulary(captions: Sequence[str]) -> int:
    """Return the number of different words in all captions.

    Raises:
        ValueError: there are no captions.
    """
    return _number_of_different(ngrams_of(captions, 1)[0])


def unique_share(captions: Sequence[str]) -> float:
    """Return the number of different captions divided by the number of captions, from 1 / len(captions) to 1.

    Raises:
        ValueError: there are no captions.
    """
    return _number_of_different(lines_of(captions)) / len(captions)


def mean_length(captions: Sequence[str]) -> float:
    """Return the mean number of words per caption.

    Raises:
        ValueError: there are no captions.
    """
    _check(captions)
    return sum(len(tokenize(caption)) for caption in captions) / len(captions)


def distinct_n(captions: Sequence[str], n: int = 2) -> float:
    """Return the number of different n-grams divided by the number of n-grams in all captions, from 0 to 1.

    (Li et al.: A Diversity-Promoting Objective Function for Neural Conversation Models, arXiv 1510.03055.) It
    decreases with the number of captions, so compare sets of equal size only. Captions too short for any n-gram give
    0.

    Raises:
        ValueError: there are no captions, or n is below 1.
    """
    ngrams, _ = ngrams_of(captions, n)
    return _number_of_different(ngrams) / len(ngrams) if len(ngrams) else 0.0


def ngrams_of(captions: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the n-grams of N captions as numbers from 0, ``(M,)``, and how many each caption has, ``(N,)``.

    Raises:
        ValueError: there are no captions, or n is below 1.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, got n = {n}.")
    _check(captions)
    numbers: dict[str, int] = {}
    parts, sizes = [], []
    for block in in_blocks(captions):
        rows = [tokenize(caption) for caption in block]
        own = [numbers.setdefault(word, len(numbers)) for words in rows for word in words]
        parts.append(np.array(own, dtype=np.int32))
        sizes.append(np.array([len(words) for words in rows], dtype=np.int64))
    words, lengths = np.concatenate(parts), np.concatenate(sizes)
    starts = (lengths.cumsum() - lengths).astype(np.int32)
    places = np.arange(len(words), dtype=np.int32) - np.repeat(starts, lengths)  # of each word in its caption
    is_last = np.append(places[1:] == 0, True)[: len(words)]
    ids = words
    for size in range(2, n + 1):
        shorter = ids[~is_last[places >= size - 2]]
        ids = _numbered(shorter * np.int64(len(numbers)) + words[places >= size - 1])
    return ids, np.maximum(lengths - n + 1, 0)


def lines_of(captions: Sequence[str]) -> np.ndarray:
    """Return a number from 0 for each caption, ``(N,)``, which captions of the same words share.

    Raises:
        ValueError: there are no captions.
    """
    _check(captions)
    # By 128 bits of each line: two different lines of a million agree in them with a probability of 1e-27.
    hashes = hashed(map(ptb_line, captions))
    return _numbered(_numbered(hashes[:, 0]) * np.int64(len(hashes)) + _numbered(hashes[:, 1]))


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
    _check(captions)
    if len(captions) < 2:
        raise ValueError("self-BLEU compares captions with each other: give at least two.")

    def repeats_of(block: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rows = [tokenize(caption) for caption in block]
        lengths = np.array([len(words) for words in rows])
        words = hashed_words((word for own in rows for word in own), seed)
        hashes, text, sizes = hashed_ngrams(words, lengths, max_n)
        return numbered_repeats(hashes, text), text, sizes, lengths

    # An n-gram's k-th occurrence in a caption is matched if another caption has k of them, too.
    frequencies = count_documents(lambda seed: (repeats_of(block, seed)[:2] for block in in_blocks(captions)), 0)
    lengths = Counter(len(tokenize(caption)) for caption in captions)
    closest = {size: _closest(size, lengths) for size in lengths}
    scores: list[float] = []
    for block in in_blocks(captions):
        hashes, text, ns, sizes = repeats_of(block, frequencies.seed)
        matched = frequencies.of(hashes) > 1
        matches = np.bincount((text * max_n + ns - 1)[matched], minlength=len(block) * max_n).reshape(-1, max_n)
        nearest = [closest[size] for size in sizes.tolist()]
        attempts = np.maximum(sizes[:, None] - np.arange(max_n), 0)
        rows = np.column_stack([sizes, nearest, matches, attempts]).astype(np.float64)
        scores += bleu_of_counts(rows)[:, -1].tolist()
    return scores


def _closest(size: int, lengths: Counter[int]) -> int:
    """Return the length of another caption that is closest to a caption's; of two, the shorter."""
    others = (length for length, captions_of in lengths.items() if length != size or captions_of > 1)
    return min((abs(length - size), length) for length in others)[1]


def novelty(captions: Sequence[str], training_captions: Iterable[str]) -> float:
    """Return the fraction of captions that are not training captions, ignoring case and punctuation.

    Raises:
        ValueError: there are no captions, or no training captions.
    """
    flags = novel(captions, training_captions)
    return sum(flags) / len(flags)


def novel(captions: Sequence[str], training_captions: Iterable[str]) -> list[bool]:
    """Return for each caption whether it is not a training caption; raises like `novelty`.

    The training captions are read once, and not kept.
    """
    _check(captions)
    lines = [ptb_line(caption) for caption in captions]
    left, read = set(lines), 0
    for caption in () if isinstance(training_captions, str) else training_captions:
        left.discard(ptb_line(caption))
        read += 1
    if not read:
        raise ValueError(f"novelty needs a list with at least one caption of training, got {training_captions!r}.")
    return [line in left for line in lines]


def different(items: np.ndarray, sizes: np.ndarray, share: bool = False) -> Statistic:
    """Return the number of different items as a function of the images in the test set.

    Args:
        items: the items of all images' captions as numbers from 0, ``(M,)``: words, n-grams, or captions.
        sizes: the number of items of each image, ``(N,)``.
        share: divide by the number of all items.
    """
    order = items.argsort(kind="stable")
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order]
    starts = np.searchsorted(items[order], np.arange(_number_of_different(items)))
    totals = sizes.astype(np.float64)

    def count(weights: np.ndarray) -> np.ndarray:
        if not len(starts):
            return np.zeros(len(weights))
        drawn = ((row > 0)[owners] for row in weights)
        found = np.array([np.logical_or.reduceat(each, starts).sum() for each in drawn], dtype=np.float64)
        return found / np.maximum(weights @ totals, 1.0) if share else found

    return count


def _numbered(items: np.ndarray) -> np.ndarray:
    """Return a number from 0 for each item, int32, which equal items share; with less memory than `np.unique`."""
    order = items.argsort()
    items = items[order]
    ids = np.zeros(len(items), dtype=np.int32)
    ids[order[1:]] = np.cumsum(items[1:] != items[:-1], dtype=np.int32)
    return ids


def _number_of_different(numbers: np.ndarray) -> int:
    return int(numbers.max(initial=-1)) + 1


def _check(captions: Sequence[str]) -> None:
    if isinstance(captions, str) or not captions:
        raise ValueError(f"expected a list with at least one caption, got {captions!r}.")
