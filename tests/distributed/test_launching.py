"""Training arguments pass what a launcher and a person say on to those that act on it."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_ddp_timeout_reaches_gloo(run_processes, tmp_path):
    """transformers gives it to accelerators only."""
    run_processes(str(Path(__file__).parent / "gloo_timeout.py"), *[[tmp_path]] * 2)
    assert [(tmp_path / f"waits-{rank}").read_text() for rank in range(2)] == ["20.0", "20.0"]


@pytest.mark.parametrize("script", ["lost_process.py", "lost_first_process.py"])
def test_a_process_that_loses_another_says_so_in_one_line(run_processes, tmp_path, script):
    run_processes(str(Path(__file__).parent / script), *[[tmp_path]] * 2)
    said = (tmp_path / "said").read_text()
    assert "error: Another process of this run has ended" in said and "--resume_from_checkpoint true" in said
    assert len(said.splitlines()) == 1
