"""Agreement of captions with references: CIDEr-D, BLEU and ROUGE-L.

The definitions are those of the COCO caption evaluation (the package `pycocoevalcap`), so values are comparable with
published ones. Note when you compare:

- values are not multiplied by 100: papers print a CIDEr-D of 1.0 as "100" and a BLEU of 0.35 as "35";
- words are those of the COCO evaluation's tokenizer, reimplemented without Java in
  `hf_distinct.evaluation.ptb_tokenizer`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hf_distinct.evaluation.blocks import check_references, check_rows, in_blocks
from hf_distinct.evaluation.bootstrap import Statistic
from hf_distinct.evaluation.frequency_files import document_frequencies
from hf_distinct.evaluation.ngram_counts import SIGMA, ngram_counts
from hf_distinct.evaluation.ngram_hashes import MAX_N, hashed_ngrams, hashed_words
from hf_distinct.evaluation.ptb_tokenizer import ptb_line, tokenize

Ngram = tuple[str, ...]

END_TOKEN = "\n"
"""The end of a caption as a word, which `tokenize` never returns."""
ROUGE_BETA = 1.2
"""Weight of recall against precision in ROUGE-L."""


class Vector(NamedTuple):
    """A text for CIDEr-D: its number of words, and its n-grams with their tf-idf weights."""

    length: int
    weights: list[tuple[Ngram, float]]


class CiderD:
    """CIDEr-D with document frequencies counted once, fast enough for a reward.

    For n = 1..4 a caption c is a vector g_n(c) with one entry for each n-gram w: (how often w is in c) times
    log(number of images / number of images with w among their references). With references s_1..s_m

        CIDEr-D(c) = 10 / (4 m) * sum_n sum_j exp(-(|c| - |s_j|)^2 / (2 * 6^2)) * <min(g_n(c), g_n(s_j)), g_n(s_j)>
                                                                                / (||g_n(c)|| * ||g_n(s_j)||)

    (Vedantam, Zitnick, Parikh: CIDEr, arXiv 1411.5726, section 4 and appendix.) An n-gram that is not in the corpus
    counts as if one image had it. In a corpus of one image every weight is log(1) = 0, so every score is 0.

    Args:
        references_corpus: the reference captions of each image; document frequencies are counted over images. Those of
            a column of a dataset (``dataset["captions"]``) are kept with the dataset, see
            `hf_distinct.evaluation.frequency_files`.
        cache_size: for how many images the prepared references are kept (about 20 kB per image).
        end_token: count the end of each caption and reference as a word. The metric does not; a reward should,
            see `hf_distinct.rewards.CiderReward`.

    Raises:
        ValueError: the corpus is empty or an image has no reference.
    """

    def __init__(
        self, references_corpus: Sequence[Sequence[str]], cache_size: int = 4096, end_token: bool = False
    ) -> None:
        if not len(references_corpus):
            raise ValueError("CIDEr-D needs reference captions to count document frequencies: the corpus is empty.")
        self._end = [END_TOKEN] if end_token else []
        self._frequencies = document_frequencies(references_corpus, self._end)
        self._unseen_idf = math.log(self._frequencies.images)
        self._cache_size = cache_size
        self._cache: dict[tuple[str, ...], _Postings] = {}

    def score(self, candidate: str, references: Sequence[str]) -> float:
        """Return the CIDEr-D of one caption against the references of its image, from 0 to 10 (1.0 is "100").

        Raises:
            ValueError: there is no reference.
        """
        return self._score(self._vectors([candidate])[0], self._prepare(references))

    def _score(self, candidate: Vector, postings: _Postings) -> float:
        similarities = [0.0] * (MAX_N * len(postings.lengths))  # entry j * MAX_N + n - 1: reference j, n-grams
        squares = [0.0] * MAX_N
        for ngram, weight in candidate.weights:
            squares[len(ngram) - 1] += weight * weight
            for slot, reference_weight, reference_cosine in postings.entries.get(ngram, ()):
                similarities[slot] += min(weight, reference_weight) * reference_cosine
        norms = [math.sqrt(square) or 1.0 for square in squares]
        total = 0.0
        for j, reference_length in enumerate(postings.lengths):
            penalty = math.exp(-((candidate.length - reference_length) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(similarities[j * MAX_N + n] / norms[n] for n in range(MAX_N))
        return 10.0 * total / (MAX_N * len(postings.lengths))

    def scores(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Return the CIDEr-D of each caption; `references[i]` belong to `candidates[i]`.

        Raises:
            ValueError: the two lists differ in length, are empty, or a row has no reference.
        """
        check_rows(candidates, references)
        return [
            self._score(vector, self._prepare(own))
            for block, of_block in zip(in_blocks(candidates), in_blocks(references), strict=True)
            for vector, own in zip(self._vectors(block), of_block, strict=True)
        ]

    def _vectors(self, texts: Sequence[str]) -> list[Vector]:
        """Return the tf-idf weights of the n-grams of each text; their frequencies are looked up together."""
        rows = [tokenize(text) + self._end for text in texts]
        words = hashed_words((word for own in rows for word in own), self._frequencies.seed)
        hashes, text, _ = hashed_ngrams(words, np.array([len(own) for own in rows]))
        images_with = iter(self._frequencies.of(hashes)[text.argsort(kind="stable")].tolist())
        vectors = []
        for own in rows:
            ngrams = list(_ngrams(own, MAX_N))
            frequencies = dict(zip(ngrams, images_with, strict=False))
            weights = [
                (ngram, count * (self._unseen_idf - math.log(frequencies[ngram])))
                for ngram, count in Counter(ngrams).items()
            ]
            vectors.append(Vector(len(own), weights))
        return vectors

    def _prepare(self, references: Sequence[str]) -> _Postings:
        """Return the indexed references of one image, from the cache if possible."""
        key = tuple(references)
        if key not in self._cache:
            check_references(references)
            if len(self._cache) >= self._cache_size:
                self._cache.pop(next(iter(self._cache)), None)  # the oldest
            self._cache[key] = _Postings(self._vectors(references))
        return self._cache[key]


class _Postings:
    """The references of one image as n-gram -> [(slot, weight, weight / norm)].

    A candidate looks up each of its n-grams only once, whatever the number of references.
    """

    __slots__ = ("entries", "lengths")

    def __init__(self, references: Sequence[Vector]) -> None:
        self.entries: dict[Ngram, list[tuple[int, float, float]]] = {}
        self.lengths = [reference.length for reference in references]
        for j, (_, vector) in enumerate(references):
            squares = [0.0] * MAX_N
            for ngram, weight in vector:
                squares[len(ngram) - 1] += weight * weight
            for ngram, weight in vector:
                if weight > 0.0:
                    n = len(ngram) - 1
                    entry = (j * MAX_N + n, weight, weight / math.sqrt(squares[n]))
                    self.entries.setdefault(ngram, []).append(entry)


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean CIDEr-D of a test set, with document frequencies from its references (papers print 1.0 as 100).

    Args:
        captions: one caption per image.
        references: the reference captions of each image.

    Raises:
        ValueError: the two lists differ in length, are empty, or a row has no reference.
    """
    check_rows(captions, references)
    return float(np.concatenate([counts.cider_d() for counts in ngram_counts(captions, references)]).mean())


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return corpus BLEU-1 .. BLEU-4, each from 0 to 1.

    Clipped n-gram matches are summed over the corpus before dividing. The brevity penalty compares the sum of caption
    lengths with the sum of the closest reference lengths; of two equally close, the shorter counts (Papineni et al.
    2002).

    Args:
        captions: one caption per image.
        references: the reference captions of each image.

    Raises:
        ValueError: the two lists differ in length, are empty, or a row has no reference.
    """
    check_rows(captions, references)
    counts = np.concatenate([counts.bleu() for counts in ngram_counts(captions, references)])
    return bleu_of_counts(counts.sum(axis=0, keepdims=True))[0].tolist()


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """Return BLEU-1 .. BLEU-n, `(R, n)`, from R sums of rows of `NgramCounts.bleu`."""
    lengths, closest, rest = counts[:, 0], counts[:, 1], counts[:, 2:]
    matches, attempts = np.hsplit(rest, 2)
    # pycocoevalcap's two small numbers against 0 / 0. They change the ninth digit, except if no caption has n words:
    # then BLEU-n is small instead of 0, as in pycocoevalcap.
    tiny, small = 1e-15, 1e-9
    brevity = np.exp(np.minimum(0.0, 1 - (closest + small) / (lengths + tiny)))
    products = np.cumprod((matches + tiny) / (attempts + small), axis=1)
    return brevity[:, None] * products ** (1 / np.arange(1, matches.shape[1] + 1))


def bleu_statistic(counts: np.ndarray, n: int) -> Statistic:
    """Return BLEU-n as a function of the images in the test set."""
    return lambda weights: bleu_of_counts(weights @ counts)[:, n - 1]


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean ROUGE-L of a test set, from 0 to 1.

    Raises:
        ValueError: the two lists differ in length, are empty, or a row has no reference.
    """
    scores = rouge_l_scores(captions, references)
    return math.fsum(scores) / len(scores)


def rouge_l_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the ROUGE-L of each caption, from 0 to 1.

    With the longest common subsequence of a caption and each reference, P is the best precision and R the best recall
    over the references (possibly two different ones): (1 + b^2) P R / (R + b^2 P), b = 1.2 (Lin 2004). A text without
    words counts as one empty word, so that two empty texts agree.

    Args:
        captions: one caption per image.
        references: the reference captions of each image.

    Raises:
        ValueError: the two lists differ in length, are empty, or a row has no reference.
    """
    check_rows(captions, references)
    scores = []
    for caption, own in zip(captions, references, strict=True):
        words = ptb_line(caption).split(" ")
        precision = recall = 0.0
        for reference in own:
            theirs = ptb_line(reference).split(" ")
            common = _longest_common_subsequence(words, theirs)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(theirs))
        both = recall + ROUGE_BETA**2 * precision
        scores.append((1 + ROUGE_BETA**2) * precision * recall / both if both else 0.0)
    return scores


def _ngrams(words: list[str], max_n: int) -> Iterator[Ngram]:
    """Yield all n-grams of 1 to `max_n` words, repetitions included."""
    for n in range(1, max_n + 1):
        yield from zip(*(words[start:] for start in range(n)), strict=False)


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Return the length of the longest common subsequence.

    It uses one bit per word of `second` for a row of the dynamic programming table (Hyyro 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    whole = row = (1 << len(second)) - 1
    for word in first:
        if word in places:
            matching = row & places[word]
            row = (row + matching) | (row - matching)
            row &= whole
    return len(second) - row.bit_count()
