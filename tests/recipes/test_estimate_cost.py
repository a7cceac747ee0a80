"""recipes/estimate_cost.py as a person runs it, on a report with round figures."""

from __future__ import annotations

import json
import re

import forked
import pytest


def test_hours_of_a_training_by_hand(tmp_path):
    report = {"settings": {"images": 4}, "seconds": {"sample5": {"ours": {"tflop": 2.0}}}, "parameters": 225_000_000}
    (tmp_path / "report.json").write_text(json.dumps(report))
    arguments = ["--images", 720_000, "--gpus", 1, 2, "--epochs", 2, "--batch", 10, "--tokens", 6]
    arguments += ["--sustained_tflops", 100, "--bandwidth", 10, "--workers", 4]
    said = forked.run("estimate_cost.py", "--report", tmp_path / "report.json", *arguments).stdout
    host = float(re.search(r"host, ms a token: ([\d.]+)", said)[1])
    decoding = float(re.search(r"decoding, ms a picture: ([\d.]+)", said)[1])
    table = {line.split(",")[1].split()[0]: line.split()[4:] for line in said.splitlines() if line[:6] == "720000"}
    one, two = ([float(value) for value in table[gpus]] for gpus in "12")
    # 144,000 steps of ten images; an image takes half a TFLOP, a step ten tokens' worth of the host.
    assert one[0] == 2.0 and two[0] == 1.0
    assert one[1] == pytest.approx(0.4 * host, rel=0.1) and two[1] == pytest.approx(one[1] / 2, abs=2e-3)
    assert one[2] == 0 and two[2] == pytest.approx(72_000 * 0.18 / 3600, abs=1e-3)  # 2 * 900 MB at 10 GB/s
    assert one[3] == pytest.approx(0.1 * decoding, rel=0.1)
    assert one[4] == pytest.approx(max(sum(one[:3]), one[3]), abs=2e-3)
    assert one[5] == pytest.approx(one[3] / 2, abs=1e-3)
    assert one[7] == pytest.approx(720_000 * 6 * 1024 / 2**30, abs=1e-3)


def test_a_report_without_samples_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"seconds": {"beam": {}}}))
    done = forked.run("estimate_cost.py", "--report", tmp_path / "report.json", fails=True)
    assert "has no sampled rollouts: run benchmarks/step.py --rollouts sample" in done.stderr
