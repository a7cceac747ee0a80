"""Modules that have moved are found by the names that they had."""

from __future__ import annotations

import importlib
import sys

import pytest

from hf_distinct._moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_a_module_that_moved_is_found_by_its_old_name(name):
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match=f"{name} has moved to {MOVED[name]}"):
        found = importlib.import_module(name)
    now = importlib.import_module(MOVED[name])
    assert found is now and found.__spec__.name == found.__name__ == MOVED[name]
