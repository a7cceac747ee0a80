"""CIDEr-D and BLEU of a whole test set, with all n-grams counted in arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hf_distinct.evaluation.ptb_tokenizer import tokenize

MAX_N = 4
"""Longest n-gram."""
SIGMA = 6.0
"""Width, in words, of CIDEr-D's Gaussian penalty on a difference in length."""


class NgramCounts:
    """Counts of each n-gram, n = 1 to 4, in T texts: N captions, followed by the references of each.

    Args:
        captions: one caption for each of N images.
        references: the reference captions of each image, at least one.

    Attributes:
        lengths: ``(T,)``, number of words of each text.
        owners: ``(T,)``, the image of each text.
        text, gram, count, size: ``(E,)`` each, one entry per n-gram of each text: the text, the id of the n-gram, its
            count in the text, and n - 1; sorted by text, then by n-gram.
        grams: number of n-gram ids.
    """

    def __init__(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self.images = len(captions)
        self.owners = np.concatenate(
            [np.arange(self.images), np.repeat(np.arange(self.images), list(map(len, references)))]
        )
        texts = [tokenize(text) for text in [*captions, *(text for own in references for text in own)]]
        self.lengths = np.array([len(words) for words in texts], dtype=np.int64)
        numbers: dict[str, int] = {}
        words = np.array([numbers.setdefault(word, len(numbers)) for each in texts for word in each], dtype=np.int64)
        text = np.repeat(np.arange(len(texts)), self.lengths)
        room = np.repeat(self.lengths.cumsum(), self.lengths) - np.arange(len(words))  # words from here to the end
        starts, ids = np.arange(len(words)), words
        keys, sizes, self.grams = [], [], 0
        for n in range(1, MAX_N + 1):
            if n > 1:
                longer = room[starts] >= n
                starts = starts[longer]
                ids = ids[longer] * len(numbers) + words[starts + n - 1]
                ids = np.unique(ids, return_inverse=True)[1]
            keys.append((text[starts], ids + self.grams))
            sizes.append(np.full(int(ids.max(initial=-1)) + 1, n - 1))
            self.grams += len(sizes[-1])
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
        owners = self.owners[self.text[self._reference]]
        seen = np.unique(owners * max(self.grams, 1) + self.gram[self._reference]) % max(self.grams, 1)
        images_with = np.bincount(seen, minlength=self.grams)
        weights = self.count * (np.log(self.images) - np.log(np.maximum(images_with, 1)))[self.gram]
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
