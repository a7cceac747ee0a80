"""recipes/benchmarks/contrast.py as a person runs it, on small pools."""

from __future__ import annotations

import forked


def test_a_row_for_each_size_of_the_pools():
    few = ["--images", 8, "--dim", 4, "--processes", 1, 4, "--memory_batches", 0, 2]
    done = forked.run("benchmarks/contrast.py", *few, "--block", 100)
    rows = [line for line in done.stdout.splitlines() if "remembered" in line]
    assert [row.split("  ")[0] for row in rows] == [
        f"{processes} processes, {memory} remembered batches" for memory in (0, 2) for processes in (1, 4)
    ]
    done = forked.run("benchmarks/contrast.py", "--block", 0, fails=True)
    assert "block=0 must be at least 1" in done.stderr
