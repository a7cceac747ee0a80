"""A small part of recipes/benchmarks/faults.py: one fault of each kind, and a few broken files for each reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.campaign import KINDS
from faults.fuzz_readers import readers

FAULTS = Path(__file__).parents[2] / "recipes" / "benchmarks" / "faults.py"
# The other two are kill_and_resume.py, which has a test of its own.
TRIED = [name for name in KINDS if name not in ("steps", "rank_steps")]


@pytest.mark.slow
def test_nothing_is_lost_wrong_or_bare(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [
            sys.executable, FAULTS, "--kinds", *TRIED, "fuzz", "--faults", "1", "--inputs", "200",
            "--output", tmp_path / "table.md",
        ],
        env=environment, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert all(row[2:5] == ["0", "0", "0"] for row in rows)
    tried = {row[0]: int(row[1]) for row in rows}
    not_here = "disk: not tried" in done.stdout
    assert set(tried) >= {KINDS[name][0] for name in TRIED if not (name == "disk" and not_here)}
    assert min(tried.values()) >= 1 and tried[f"broken files, given to {len(readers())} readers"] >= 200
