"""recipes/benchmark.py as a person runs it, on few pictures; it checks that reference and ours have the same loss."""

from __future__ import annotations

import json

import forked
import pytest

RATIOS = {f"{way}_{ratio}" for way in ("beam", "sample5") for ratio in ("vs_reference", "vs_floor", "floor_lowered")}


def test_ratios_phases_and_memory_of_four_ways(tmp_path):
    output = tmp_path / "report.json"
    done = forked.run("benchmark.py", "--images", 3, "--repetitions", 1, "--output", output)
    report = json.loads(output.read_text())
    assert set(report["ratios"]) == set(report["spread"]) == RATIOS
    for name, ratio in report["ratios"].items():
        low, high = report["spread"][name]
        assert 0 < low <= ratio <= high
        assert f"{name}: {ratio:.2f} ({low:.2f} to {high:.2f})" in done.stdout
    for ways in report["seconds"].values():
        assert ways["reference"]["loss"] == pytest.approx(ways["ours"]["loss"], abs=1e-4)
        assert ways["floor"]["loss"] == pytest.approx(ways["lowered"]["loss"], abs=1e-4)
        assert ways["floor"]["loss"] > 0  # a cross-entropy
        assert ways["reference"]["tflop"] > ways["floor"]["tflop"] > ways["lowered"]["tflop"] > 0
        for way in ways.values():
            assert way["images a second"] == pytest.approx(3 / way["step"])
            assert 0 < way["generate"] < way["step"]
            assert 0 < way["backward"] < way["step"]
            assert way["peak_gib"] > 0
