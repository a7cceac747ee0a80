"""No broken file ends in a traceback: a few hundred inputs, always the same; more of them by hand."""

from __future__ import annotations

import random

import pytest
from faults.fuzz_readers import broken, fuzz, readers


@pytest.mark.parametrize("name", readers())
def test_broken_files_are_read_or_refused_in_words(name):
    _, tracebacks = fuzz(12, 7, name)
    assert not tracebacks, tracebacks[0]


def test_the_same_seed_breaks_the_same_way():
    assert broken(b'{"a": 1}', random.Random("1 x")) == broken(b'{"a": 1}', random.Random("1 x"))
