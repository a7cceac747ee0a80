"""Counts in blocks of images."""

from __future__ import annotations

import numpy as np

from hf_distinct.evaluation import blocks
from hf_distinct.evaluation.captions import bleu, cider_d
from hf_distinct.evaluation.ngram_counts import NgramCounts, ngram_counts


def test_blocks_of_any_size_give_the_same_to_the_last_digit(monkeypatch):
    rng = np.random.default_rng(0)
    letters, chances = list("abcdefghijkl"), np.arange(1, 13) / 78

    def draw():
        return " ".join(rng.choice(letters, size=rng.integers(0, 14), p=chances))

    captions = [draw() for _ in range(100)]
    references = [[draw() for _ in range(rng.integers(1, 6))] for _ in range(100)]
    whole = NgramCounts(captions, references)
    figures = cider_d(captions, references), bleu(captions, references)
    for size in (1, 7, 64):
        monkeypatch.setattr(blocks, "BLOCK", size)
        parts = list(ngram_counts(captions, references))
        assert len(parts) == -(-100 // size)
        assert np.concatenate([part.cider_d() for part in parts]).tolist() == whole.cider_d().tolist()
        assert np.concatenate([part.bleu() for part in parts]).tolist() == whole.bleu().tolist()
        assert (cider_d(captions, references), bleu(captions, references)) == figures
