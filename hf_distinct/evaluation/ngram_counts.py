"""CIDEr-D and BLEU of a test set, with all n-grams counted in arrays, one block of images after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from hf_distinct.evaluation.blocks import in_blocks
from hf_distinct.evaluation.document_frequencies import DocumentFrequencies
from hf_distinct.evaluation.frequency_files import document_frequencies
from hf_distinct.evaluation.ngram_hashes import MAX_N, extend, hashed_words, ngram_places
from hf_distinct.evaluation.ptb_tokenizer import tokenize

SIGMA = 6.0
"""Width, in words, of CIDEr-D's Gaussian penalty on a difference in length."""


class CorpusWords:
    """The words of a test set, numbered in the order in which captions and then references first use them.

    This order, the same for every block, is the one in which n-grams are summed, so that figures do not depend on the
    size of the blocks.

    Attributes:
        numbers: the number of each word.
        hashes: ``(W, 2)``, the hashes of the words.
        frequencies: in how many images each n-gram of the references occurs.
    """

    def __init__(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self.frequencies: DocumentFrequencies = document_frequencies(references)
        self.numbers: dict[str, int] = {}
        self._number(captions)
        self._number(text for block in in_blocks(references) for own in block for text in own)
        self.hashes = hashed_words(self.numbers, self.frequencies.seed)

    def _number(self, texts: Iterable[str]) -> None:
        for text in texts:
            for word in tokenize(text):
                self.numbers.setdefault(word, len(self.numbers))


class NgramCounts:
    """Counts of each n-gram, n = 1 to 4, in T texts: N captions, followed by the references of each.

    Args:
        captions: one caption for each of N images, a block of the test set.
        references: the reference captions of each image, at least one.
        words: the words of the whole test set; by default, of this block.

    Attributes:
        lengths: ``(T,)``, number of words of each text.
        owners: ``(T,)``, the image of each text.
        text, gram, count, size: ``(E,)`` each, one entry per n-gram of each text: the text, the id of the n-gram, its
            count in the text, and n - 1; sorted by text, then by n-gram.
        images_with: number of images of the test set in which each n-gram occurs, at least 1.
        grams: number of n-gram ids.
    """

    def __init__(
        self, captions: Sequence[str], references: Sequence[Sequence[str]], words: CorpusWords | None = None
    ) -> None:
        known = words or CorpusWords(captions, references)
        self.images, self.corpus = len(captions), known.frequencies.images
        self.owners = np.concatenate(
            [np.arange(self.images), np.repeat(np.arange(self.images), list(map(len, references)))]
        )
        texts = [tokenize(text) for text in [*captions, *(text for own in references for text in own)]]
        self.lengths = np.array([len(each) for each in texts], dtype=np.int64)
        places = np.array([known.numbers[word] for each in texts for word in each], dtype=np.int64)
        ids: np.ndarray = places
        hashes: np.ndarray | None = None
        keys, sizes, of_grams, self.grams = [], [], [], 0
        for n, (longer, last, text) in enumerate(ngram_places(self.lengths), start=1):
            hashes = extend(None if hashes is None else hashes[longer], known.hashes[places[last]])
            ids = places if n == 1 else ids[longer] * len(known.numbers) + places[last]
            _, first, ids = np.unique(ids, return_index=True, return_inverse=True)
            keys.append((text, ids + self.grams))
            sizes.append(np.full(len(first), n - 1))
            of_grams.append(hashes[first])
            self.grams += len(first)
        self.images_with = known.frequencies.of(np.concatenate(of_grams))
        together = np.concatenate([where * max(self.grams, 1) + ids for where, ids in keys])
        found, self.count = np.unique(together, return_counts=True)
        self.text, self.gram = np.divmod(found, max(self.grams, 1))
        self.size = np.concatenate(sizes)[self.gram]
        # Entries of references, and the caption's entry of the same n-gram, if it has one.
        of_captions = int(np.searchsorted(self.text, self.images))
        self._reference = slice(of_captions, None)
        wanted = self.owners[self.text[self._reference]] * max(self.grams, 1) + self.gram[self._reference]
        self._caption = np.searchsorted(found[:of_captions], wanted)
        self._shared = self._caption < of_captions
        self._shared[self._shared] = found[self._caption[self._shared]] == wanted[self._shared]

    def cider_d(self) -> np.ndarray:
        """Return the CIDEr-D of each caption, ``(N,)``, as `hf_distinct.evaluation.captions.CiderD` defines it."""
        weights = self.count * (np.log(self.corpus) - np.log(self.images_with))[self.gram]
        slots = self.text * MAX_N + self.size
        norms = np.sqrt(np.bincount(slots, weights**2, minlength=len(self.owners) * MAX_N)).reshape(-1, MAX_N)
        theirs = weights[self._reference][self._shared]
        ours = weights[self._caption[self._shared]]
        shared = slots[self._reference][self._shared]
        products = np.bincount(shared, np.minimum(ours, theirs) * theirs, minlength=norms.size).reshape(-1, MAX_N)
        scale = norms * norms[self.owners]
        similarities = np.divide(products, scale, out=np.zeros(products.shape), where=scale > 0).sum(axis=1)
        difference = self.lengths - self.lengths[self.owners]
        similarities *= np.exp(-(difference**2) / (2 * SIGMA**2))
        own = self.owners[self.images :]
        return 10 / MAX_N * np.bincount(own, similarities[self.images :], minlength=self.images) / np.bincount(own)

    def bleu(self) -> np.ndarray:
        """Return the quantities that BLEU sums over images, ``(N, 2 + 2 * 4)``.

        The columns are the caption's length, the length of the closest reference (the shorter of two), the clipped
        matches for each n, and the number of n-grams for each n.
        """
        allowed = np.zeros(len(self.count), dtype=np.int64)
        np.maximum.at(allowed, self._caption[self._shared], self.count[self._reference][self._shared])
        of_captions = slice(0, self._reference.start)
        clipped = np.minimum(allowed, self.count)[of_captions]
        slots = self.text[of_captions] * MAX_N + self.size[of_captions]
        matches = np.bincount(slots, clipped, minlength=self.images * MAX_N).reshape(-1, MAX_N)
        lengths, theirs = self.lengths[: self.images], self.lengths[self.images :]
        own = self.owners[self.images :]
        order = np.lexsort((theirs, np.abs(theirs - lengths[own]), own))
        closest = theirs[order][np.searchsorted(own, np.arange(self.images))]
        attempts = np.maximum(lengths[:, None] - np.arange(MAX_N), 0)
        return np.column_stack([lengths, closest, matches, attempts]).astype(np.float64)


def ngram_counts(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[NgramCounts]:
    """Yield the counts of a test set, block by block; arguments as in `NgramCounts`."""
    words = CorpusWords(captions, references)
    for block in zip(in_blocks(captions), in_blocks(references), strict=True):
        yield NgramCounts(*block, words)
