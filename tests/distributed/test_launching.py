"""Training arguments pass what a launcher and a person say on to those that act on it."""

from __future__ import annotations

from pathlib import Path


def test_ddp_timeout_reaches_gloo(run_processes, tmp_path):
    """transformers gives it to accelerators only."""
    run_processes(str(Path(__file__).parent / "gloo_timeout.py"), *[[tmp_path]] * 2)
    assert [(tmp_path / f"waits-{rank}").read_text() for rank in range(2)] == ["20.0", "20.0"]
