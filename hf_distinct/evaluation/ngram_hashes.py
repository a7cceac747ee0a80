"""N-grams as 96 bits each: 64 that identify an n-gram, and 32 that reveal when two n-grams have the same 64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

MAX_N = 4
"""Longest n-gram."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying loses no bits."""


def hashed_words(words: Iterable[str], seed: int = 0) -> np.ndarray:
    """Return two independent 64-bit hashes of each of W words, ``(W, 2)`` uint64."""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.int64)
    return hashed(numbers, seed)[ids]


def hashed(texts: Iterable[str], seed: int = 0) -> np.ndarray:
    """Return the XXH3 of each of T texts, of 128 bits, as ``(T, 2)`` uint64."""
    digests = b"".join([xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"), seed) for text in texts])
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def ngram_places(lengths: np.ndarray, max_n: int = MAX_N) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the n-grams of T texts for n = 1 to `max_n`, given the number of words of each text, ``(T,)``.

    Yields:
        Which of the n-grams before, of one word less, have a next word in their text, as indices; for each n-gram the
        place of its last word among the words of all texts; and its text.
    """
    text = np.repeat(np.arange(len(lengths)), lengths)
    room = np.repeat(lengths.cumsum(), lengths) - np.arange(len(text))  # words from here to the end of the text
    starts = longer = np.arange(len(text))
    for n in range(1, max_n + 1):
        if n > 1:
            longer = np.flatnonzero(room[starts] >= n)
            starts = starts[longer]
        yield longer, starts + n - 1, text[starts]


def extend(hashes: np.ndarray | None, words: np.ndarray) -> np.ndarray:
    """Return the hashes of n-grams, ``(M, 2)``, from those of their first n - 1 words and those of the last word.

    They are polynomials of the words' hashes. Two different n-grams have the same 64 bits with a probability of about
    2^-64: among the 30 million of 600,000 images, any two with one of 1 in 40,000.
    """
    return words if hashes is None else hashes * _FACTOR + words


def hashed_ngrams(
    words: np.ndarray, lengths: np.ndarray, max_n: int = MAX_N
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all n-grams of T texts, by n and then by place: hashes ``(M, 2)``, text ``(M,)``, and n ``(M,)``.

    Args:
        words: the hashes of all words of the texts, ``(W, 2)``.
        lengths: the number of words of each text, ``(T,)``.
        max_n: the longest n-gram.
    """
    hashes: np.ndarray | None = None
    found, texts = [], []
    for longer, last, text in ngram_places(lengths, max_n):
        hashes = extend(None if hashes is None else hashes[longer], words[last])
        found.append(hashes)
        texts.append(text)
    sizes = np.repeat(np.arange(1, max_n + 1), [len(text) for text in texts])
    return np.concatenate(found), np.concatenate(texts), sizes
