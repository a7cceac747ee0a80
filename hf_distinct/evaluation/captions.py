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
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hf_distinct.evaluation.bootstrap import Statistic
from hf_distinct.evaluation.ngram_counts import MAX_N, SIGMA, NgramCounts
from hf_distinct.evaluation.ptb_tokenizer import ptb_line, tokenize

Ngram = tuple[str, ...]
Weights = Callable[[list[str]], Iterator[tuple[Ngram, float]]]

END_TOKEN = "\n"
"""The end of a caption as a word, which `tokenize` never returns."""
ROUGE_BETA = 1.2
"""Weight of recall against precision in ROUGE-L."""


class CiderD:
    """CIDEr-D with document frequencies counted once, fast enough for a reward.

    For n = 1..4 a caption c is a vector g_n(c) with one entry for each n-gram w: (how often w is in c) times
    log(number of images / number of images with w among their references). With references s_1..s_m

        CIDEr-D(c) = 10 / (4 m) * sum_n sum_j exp(-(|c| - |s_j|)^2 / (2 * 6^2)) * <min(g_n(c), g_n(s_j)), g_n(s_j)>
                                                                                / (||g_n(c)|| * ||g_n(s_j)||)

    (Vedantam, Zitnick, Parikh: CIDEr, arXiv 1411.5726, section 4 and appendix.) An n-gram that is not in the corpus
    counts as if one image had it. In a corpus of one image every weight is log(1) = 0, so every score is 0.

    Args:
        references_corpus: the reference captions of each image; document frequencies are counted over images.
        cache_size: for how many images the prepared references are kept (about 20 kB per image).
        end_token: count the end of each caption and reference as a word. The metric does not; a reward should,
            see `hf_distinct.rewards.CiderReward`.

    Raises:
        ValueError: the corpus is empty or an image has no reference.
    """

    def __init__(
        self, references_corpus: Sequence[Sequence[str]], cache_size: int = 4096, end_token: bool = False
    ) -> None:
        if not references_corpus:
            raise ValueError("CIDEr-D needs reference captions to count document frequencies: the corpus is empty.")
        self._end = [END_TOKEN] if end_token else []
        images_with: Counter[Ngram] = Counter()
        for row, references in enumerate(references_corpus):
            _check_references(references, row)
            images_with.update({ngram for reference in references for ngram in _ngrams(self._words(reference), MAX_N)})
        self._unseen_idf = math.log(len(references_corpus))
        # An n-gram of one image has the weight of an unseen one and need not be stored: most n-grams of COCO.
        idf_of_count = {count: self._unseen_idf - math.log(count) for count in set(images_with.values())}
        self._idf = {ngram: idf_of_count[count] for ngram, count in images_with.items() if count > 1}
        self._cache_size = cache_size
        self._cache: dict[tuple[str, ...], _Postings] = {}

    def score(self, candidate: str, references: Sequence[str]) -> float:
        """Return the CIDEr-D of one caption against the references of its image, from 0 to 10 (1.0 is "100").

        Raises:
            ValueError: there is no reference.
        """
        postings = self._prepare(references)
        words = self._words(candidate)
        similarities = [0.0] * (MAX_N * len(postings.lengths))  # entry j * MAX_N + n - 1: reference j, n-grams
        squares = [0.0] * MAX_N
        for ngram, weight in self._weights(words):
            squares[len(ngram) - 1] += weight * weight
            for slot, reference_weight, reference_cosine in postings.entries.get(ngram, ()):
                similarities[slot] += min(weight, reference_weight) * reference_cosine
        norms = [math.sqrt(square) or 1.0 for square in squares]
        total = 0.0
        for j, reference_length in enumerate(postings.lengths):
            penalty = math.exp(-((len(words) - reference_length) ** 2) / (2 * SIGMA**2))
            total += penalty * sum(similarities[j * MAX_N + n] / norms[n] for n in range(MAX_N))
        return 10.0 * total / (MAX_N * len(postings.lengths))

    def scores(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Return the CIDEr-D of each caption; `references[i]` belong to `candidates[i]`.

        Raises:
            ValueError: the two lists differ in length, are empty, or a row has no reference.
        """
        _check_rows(candidates, references)
        return [self.score(candidate, own) for candidate, own in zip(candidates, references, strict=True)]

    def _words(self, text: str) -> list[str]:
        return tokenize(text) + self._end

    def _weights(self, words: list[str]) -> Iterator[tuple[Ngram, float]]:
        """Yield each n-gram of a caption with its tf-idf weight."""
        for ngram, count in Counter(_ngrams(words, MAX_N)).items():
            yield ngram, count * self._idf.get(ngram, self._unseen_idf)

    def _prepare(self, references: Sequence[str]) -> _Postings:
        """Return the indexed references of one image, from the cache if possible."""
        key = tuple(references)
        if key not in self._cache:
            _check_references(references, None)
            if len(self._cache) >= self._cache_size:
                self._cache.pop(next(iter(self._cache)), None)  # the oldest
            self._cache[key] = _Postings([self._words(reference) for reference in references], self._weights)
        return self._cache[key]


class _Postings:
    """The references of one image as n-gram -> [(slot, weight, weight / norm)].

    A candidate looks up each of its n-grams only once, whatever the number of references.
    """

    __slots__ = ("entries", "lengths")

    def __init__(self, references: list[list[str]], weights: Weights) -> None:
        self.entries: dict[Ngram, list[tuple[int, float, float]]] = {}
        self.lengths = [len(words) for words in references]
        for j, words in enumerate(references):
            vector = list(weights(words))
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
    _check_rows(captions, references)
    return float(NgramCounts(captions, references).cider_d().mean())


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
    _check_rows(captions, references)
    return bleu_of_counts(NgramCounts(captions, references).bleu().sum(axis=0, keepdims=True))[0].tolist()


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
    _check_rows(captions, references)
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


def _check_references(references: Sequence[str], row: int | None) -> None:
    where = "" if row is None else f"row {row}: "
    if isinstance(references, str):
        raise ValueError(f"{where}references must be a list of captions, got the single string {references[:40]!r}.")
    if not references:
        raise ValueError(f"{where}no reference caption; drop the image or add one.")


def _check_rows(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if isinstance(captions, str) or len(captions) != len(references):
        raise ValueError(
            f"captions and references must be lists of equal length, one row per image; got {len(captions)} captions "
            f"and {len(references)} lists of references."
        )
    if not captions:
        raise ValueError("there are no captions to score.")
    for row, own in enumerate(references):
        _check_references(own, row)
