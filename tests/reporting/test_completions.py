"""The table of rollouts: what it shows, and what it makes of texts that are long, hostile or not of the screen."""

from __future__ import annotations

import io

import pytest

from hf_distinct.reporting.completions import completions_table, spread

pytestmark = pytest.mark.both_ends
ROW = {"image_id": "7", "rollout": "a red kite", "reward/cider": None, "reward/total": 0.12345, "advantage": -2.0}


def test_it_shows_texts_numbers_and_what_does_not_apply():
    title, _, names, _, row, _ = completions_table([ROW], "Step 10").splitlines()
    assert title.strip() == "Step 10"
    assert names.split() == ["image_id", "rollout", "cider", "total", "advantage"]
    assert row.split() == ["7", "a", "red", "kite", "-", "0.123", "-2.000"]


def test_long_texts_are_wrapped_to_the_terminal(monkeypatch):
    long = {**ROW, "rollout": "a red kite over a beach " * 9}
    heights = []
    for columns in (60, 400):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = completions_table([long], "Step 10").splitlines()
        assert max(map(len, lines)) <= columns
        assert sum(line.count("kite") for line in lines) == 9
        heights.append(len(lines))
    assert heights[0] > heights[1] == 6


def test_a_narrow_terminal_keeps_names_and_numbers_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {
        "image_id": "train-0-2192", "reference": "this is a big avocado left of a small sandwich",
        "rollout": "a big avocado left of a sandwich", "reward/discriminator": 0.437, "reward/contrastive": -0.046,
        "reward/cider": None, "reward/total": 0.023, "advantage": -0.022,
    }  # fmt: skip
    lines = completions_table([row], "Step 10").splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 10
    assert sum(line.startswith(" train-0-2192 ") for line in lines) == 1
    ends = ["discriminator 0.437", "contrastive -0.046", "cider -", "total 0.023", "advantage -0.022"]
    assert [line.endswith(end) for line, end in zip(lines[4:9], ends, strict=True)] == [True] * 5


def test_a_text_is_never_markup_nor_a_command_to_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    table = completions_table([{**ROW, "rollout": "a [red]kite[/red] \x1b[2J\nhere :smile:"}], "Step 10")
    assert "a [red]kite[/red] here :smile:" in table and "\x1b" not in table


def test_a_screen_that_does_not_know_a_character_shows_another_one(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    completions_table([{**ROW, "rollout": "a café"}], "Step 10").encode("ascii")


def test_some_of_many_are_at_even_distances():
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(3), 3) == spread(range(3), 9) == spread(range(3), None) == [0, 1, 2]
    assert spread([], 3) == []
