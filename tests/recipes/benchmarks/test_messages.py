"""recipes/benchmarks/messages.py: its formulas by hand, and beside the messages of two processes."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import forked
import pytest

SCRIPT = forked.RECIPES / "benchmarks" / "messages.py"


def test_formulas_by_hand():
    formulas = runpy.run_path(str(SCRIPT))
    # Two images, each with three rollouts and a reference: of eight texts an embedding of 10 numbers and three
    # integers, of two images and their similar one an embedding and an integer.
    assert formulas["pool_bytes"](images=2, texts=8, neighbours=1, dim=10) == 8 * (40 + 24) + 4 * (40 + 8)
    # Of two references a number, of six rollouts one, and of these eight two numbers for each of three rewards.
    assert formulas["figure_bytes"](images=2, rollouts=3, references=1, rewards=3) == 4 * (2 + 6 + 8 * 2 * 3)


@pytest.mark.slow
def test_two_processes_send_what_the_formulas_say(tmp_path):
    told = tmp_path / "messages.json"
    command = [sys.executable, str(SCRIPT), "--processes", "2", "--batch", "3", "--greedy", "false", "--output", told]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(told.read_text()).values()
    # Of 3 images, 9 rollouts and 3 references: each image with two similar ones.
    assert row["pools"] == row["pools, formula"] == 12 * (4 * 128 + 24) + 9 * (4 * 128 + 8)
    assert row["figures"] == row["figures, formula"] > 0
    assert 2 * row["only counts"] == row["all_gathers"]
    assert 0 <= row["reduced"] - row["weights"] < 1000  # and a few numbers that are no gradients


def test_one_process_is_refused():
    done = forked.run(f"benchmarks/{SCRIPT.name}", "--processes", "1", fails=True)
    assert "--processes should be at least 2: a single process sends nothing" in done.stderr
