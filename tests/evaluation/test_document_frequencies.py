"""Document frequencies against counts of n-grams as tuples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.evaluation import blocks, document_frequencies
from hf_distinct.evaluation.document_frequencies import count_images
from hf_distinct.evaluation.ngram_hashes import hashed_ngrams, hashed_words

texts = st.lists(st.sampled_from("abcde"), max_size=7).map(" ".join)
corpora = st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=9)


def counted(corpus, end=()):
    images_with = Counter()
    for own in corpus:
        rows = [[*text.split(), *end] for text in own]
        images_with.update({tuple(w[i : i + n]) for w in rows for n in (1, 2, 3, 4) for i in range(len(w) - n + 1)})
    return images_with


def looked_up(frequencies, ngrams):
    hashes = [hashed_ngrams(hashed_words(each, frequencies.seed), np.array([len(each)]))[0][-1] for each in ngrams]
    return frequencies.of(np.array(hashes, dtype=np.uint64).reshape(-1, 2)).tolist()


@settings(deadline=None)
@given(corpora, st.sampled_from([(), ("\n",)]))
def test_each_ngram_has_its_number_of_images(corpus, end):
    frequencies, expected = count_images(corpus, end), counted(corpus, end)
    assert looked_up(frequencies, expected) == list(expected.values())
    assert len(frequencies.keys) == sum(count > 1 for count in expected.values())  # the others are not stored
    assert looked_up(frequencies, [("f",), ("a", "f"), ("f", "a", "b", "c")]) == [1, 1, 1]


def test_blocks_runs_and_ranges_of_any_size_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    corpus = [[" ".join(rng.choice(list("abcdefgh"), size=9)) for _ in range(3)] for _ in range(50)]
    whole = count_images(corpus)
    monkeypatch.setattr(blocks, "BLOCK", 7)
    monkeypatch.setattr(document_frequencies, "_SPOOL_IN_MEMORY", 1)  # so that the file is on the disk
    monkeypatch.setattr(document_frequencies, "_MERGED_AT_A_TIME", 20)
    for first, second in zip(whole, count_images(corpus), strict=True):
        assert np.array_equal(first, second)
    assert len(whole.keys) > 400 and whole.counts.max() == 50


def test_equal_bits_of_two_ngrams_are_noticed(monkeypatch):
    def weak(words, seed=0):
        hashes = hashed_words(words, seed).copy()
        if seed < 2:
            hashes[:, 0] &= np.uint64(7)
        return hashes

    corpus = [["a dog runs"], ["a cat runs fast"], ["two birds of a tree"]] * 5
    for size in (1024, 1):  # two n-grams of one block, and of two blocks
        monkeypatch.setattr(blocks, "BLOCK", size)
        monkeypatch.setattr(document_frequencies, "hashed_words", weak)
        frequencies = count_images(corpus)
        assert frequencies.seed == 2
        assert looked_up(frequencies, counted(corpus)) == list(counted(corpus).values())


def test_another_ngram_with_the_same_bits_is_not_found():
    frequencies = count_images([["a dog"], ["a dog"]])
    hashes = hashed_words(["dog"])
    assert frequencies.of(hashes).tolist() == [2]
    assert frequencies.of(hashes ^ np.array([0, 1 << 40], dtype=np.uint64)).tolist() == [1]


def test_an_image_without_references():
    with pytest.raises(ValueError, match="row 1: no reference"):
        count_images([["a"], []])
