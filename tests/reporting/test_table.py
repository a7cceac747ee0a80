"""Tables, compared letter by letter."""

from __future__ import annotations

import pytest

from hf_distinct.reporting.table import format_table, markdown_table

METRICS = {"teacher forcing": {"R@1": 0.5, "CIDEr-D": 1.25}, "ours": {"R@1": 0.75, "words": 12}}


def test_text():
    assert format_table(METRICS) == (
        "                   R@1  CIDEr-D  words\n"
        "---------------  -----  -------  -----\n"
        "teacher forcing  0.500    1.250      -\n"
        "ours             0.750        -     12"
    )


def test_chosen_columns_and_digits():
    assert format_table(METRICS, columns=["words", "R@1"], digits=1) == (
        "                 words  R@1\n"
        "---------------  -----  ---\n"
        "teacher forcing      -  0.5\n"
        "ours                12  0.8"
    )


def test_markdown():
    assert markdown_table({"a|b": {"R@1": 0.5}, "c": {"R@1": float("nan")}}) == (
        "|  | R@1 |\n| --- | ---: |\n| a\\|b | 0.500 |\n| c | nan |"
    )


@pytest.mark.parametrize("table", [format_table, markdown_table])
def test_errors(table):
    with pytest.raises(ValueError, match="at least one row"):
        table({})
    with pytest.raises(ValueError, match="no row has the column 'BLEU'; there are 'R@1', 'CIDEr-D', 'words'"):
        table(METRICS, columns=["BLEU"])


STRANGE = {"a\x1b[31m|<b>\nline": {"[R](http://x)\u202e": 0.5, "none": None}}


def test_names_of_strangers_are_text():
    assert format_table(STRANGE).splitlines() == [
        "            [R](http://x)  none",
        "----------  -------------  ----",
        "a|<b> line          0.500     -",
    ]
    assert markdown_table(STRANGE) == (
        "|  | \\[R\\](http:<!-- -->//x) | none |\n| --- | ---: | ---: |\n| a\\|&lt;b&gt; line | 0.500 | - |"
    )
