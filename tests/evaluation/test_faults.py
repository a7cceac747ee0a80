"""Faults of language, by example."""

from __future__ import annotations

import pytest

from hf_distinct.evaluation.faults import bad_endings, repeats


def test_bad_endings():
    assert bad_endings(["a man on a", "A man with.", "a man", "", "a man looks up", "a cat and"]) == [
        True, True, False, True, False, True,
    ]  # fmt: skip


def test_repeats():
    said = ["a dog and a cat", "a dog dog", "a red dog and a red cat", "a dog on a mat on a mat", "", "a"]
    assert repeats(said) == [False, True, True, True, False, False]
    assert repeats(said, n=3) == [False, True, False, True, False, False]  # "on a mat"


def test_wrong_input():
    with pytest.raises(ValueError, match="list of captions"):
        bad_endings("a dog")
    with pytest.raises(ValueError, match="got 1"):
        repeats(["a"], n=1)
