"""The table of launches: its figures by hand. What it launches is tested in distributed."""

from __future__ import annotations

import runpy

import forked
import pytest

SCRIPT = forked.RECIPES / "benchmarks" / "launches.py"


def lines(losses: list[float], seconds: float, memory: float) -> list[dict[str, float]]:
    """Log lines of steps; the first two are slow, and the loss is the sum of its terms."""
    return [
        {
            "loss/policy_gradient": loss - 1.0, "loss/weighted_teacher_forcing": 1.0, "loss": 9.0,
            "time/step": seconds if step > 1 else 60.0, "memory/peak_gib": memory + step,
        }
        for step, loss in enumerate(losses)
    ]  # fmt: skip


def test_a_row_is_held_against_one_process():
    compare = runpy.run_path(str(SCRIPT))["compare"]
    one = lines([2.0, -4.0, 1.0, 1.0], 0.5, 1.0)
    row = compare(lines([2.0, -4.0, 1.5, 1.0], 0.25, 3.0), one)
    assert row["largest difference, 1e-6"] == pytest.approx(1e6 * 0.5 / 4.0)
    assert row["peak GiB"] == 6.0 and row["steps a second"] == 4.0 and row["relative speed"] == 2.0
    assert compare(one, one)["largest difference, 1e-6"] == 0.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--launches", "zero4"], "--launches zero4: recipes/accelerate has no such file; it has ddp, one_process"),
        (["--batch", "9"], "--batch must be a multiple of --processes"),
    ],
)
def test_what_cannot_be_compared_is_an_error(flags, message):
    assert message in forked.run(f"benchmarks/{SCRIPT.name}", *flags, fails=True).stderr
