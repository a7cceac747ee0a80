"""The package as a whole: its public names, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hf_distinct

IMPORT = """
import sys
import hf_distinct
heavy = {"torch", "transformers", "datasets", "open_clip", "PIL", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_is_quick_and_loads_nothing_heavy():
    subprocess.run([sys.executable, "-c", IMPORT], check=True, cwd=Path(__file__).parents[1], timeout=60)


@pytest.mark.parametrize("name", hf_distinct.__all__)
def test_each_public_name_is_there_and_documented(name):
    assert getattr(hf_distinct, name).__doc__
    assert name in dir(hf_distinct)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'hf_distinct' has no attribute 'nothing'"):
        hf_distinct.nothing  # noqa: B018


def test_the_package_says_that_it_is_typed_and_brings_its_template():
    folder = Path(hf_distinct.__file__).parent
    assert (folder / "py.typed").is_file()
    assert (folder / "hub" / "model_card_template.md").is_file()
