"""What corrupts captions, kind by kind."""

from __future__ import annotations

from random import Random

import pytest

from hf_distinct.evaluation.corruptions import ARTICLES, CORRUPTIONS, FILLERS, corrupt
from hf_distinct.evaluation.faults import bad_endings, repeats

CAPTION = ["a", "young", "girl", "in", "the", "red", "coat", "is", "holding", "a", "ball", "near", "the", "street"]


def corrupted(kind, words=CAPTION, times=50):
    random = Random(0)
    return [CORRUPTIONS[kind](words, random) for _ in range(times)]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_kind_spoils_and_leaves_the_caption_as_it_was(kind):
    before = list(CAPTION)
    found = corrupted(kind)
    assert all(words is None or words != before for words in found) and any(found)
    assert before == CAPTION
    assert found == corrupted(kind)  # the same for the same seed
    assert CORRUPTIONS[kind]([], Random(0)) is None


@pytest.mark.parametrize("kind", ["swapped", "shuffled"])
def test_words_change_places(kind):
    moved = [sum(a != b for a, b in zip(words, CAPTION, strict=True)) for words in filter(None, corrupted(kind))]
    assert all(sorted(words) == sorted(CAPTION) for words in filter(None, corrupted(kind)))
    assert set(moved) == {2} if kind == "swapped" else max(moved) > 4


def test_what_is_said_again_repeats():
    said = [" ".join(words) for words in corrupted("repeated_word")]
    assert all(repeats(said))
    assert all(repeats([" ".join(words) for words in corrupted("repeated_phrase") if len(words) > len(CAPTION) + 1]))


def test_ends_that_are_cut_are_bad_ones():
    assert all(bad_endings([" ".join(words) for words in corrupted("cut")]))
    assert CORRUPTIONS["cut"](["dogs", "run"], Random(0)) is None


def test_articles_come_and_go():
    for words in corrupted("doubled_article"):
        assert len(words) == len(CAPTION) + 1
        assert any(one in ARTICLES and other in ARTICLES for one, other in zip(words, words[1:], strict=False))
    assert all(words[0] == "a" and len(words) == len(CAPTION) - 1 for words in corrupted("dropped_article"))
    assert CORRUPTIONS["dropped_article"](["a", "dog"], Random(0)) is None  # people write "dog on a mat", too


def test_small_words_come_and_go():
    assert corrupted("dropped_word") == [[word for word in CAPTION if word != "in"]] * 50  # the only one
    assert CORRUPTIONS["dropped_word"](["the", "dog", "runs"], Random(0)) is None
    assert all(word in {*CAPTION, *FILLERS} for words in corrupted("filler") for word in words)
    assert {len(words) - len(CAPTION) for words in corrupted("filler")} == {1, 2, 3}


def test_a_heap_has_the_words_of_the_caption_alone():
    assert all(set(words) <= set(CAPTION) for words in corrupted("heap") if words)


def test_one_of_the_kinds_that_a_caption_allows():
    random, found = Random(0), {}
    for _ in range(200):
        words = corrupt(["dogs", "run"], random)
        found[tuple(words)] = 1
    assert ("run", "dogs") in found and ("dogs", "dogs", "run") in found and ("dogs",) not in found
    assert corrupt([], random) is None
