"""recipes/benchmarks/step.py as a person runs it; it checks that reference and ours have the same loss."""

from __future__ import annotations

import importlib
import json

import forked
import pytest
import torch

from hf_distinct.fast.narrow_products import narrow_products

PAIRS = {"vs_reference": ("reference", "ours"), "vs_floor": ("ours", "floor"), "floor_lowered": ("floor", "lowered")}
RATIOS = {f"{way}_{ratio}" for way in ("beam", "sample5") for ratio in PAIRS}


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(forked.RECIPES / "benchmarks"))
        return importlib.import_module("step")


@pytest.mark.slow
def test_ratios_phases_and_memory_of_four_ways(tmp_path):
    output = tmp_path / "report.json"
    done = forked.run("benchmarks/step.py", "--images", 3, "--repetitions", 1, "--output", output)
    report = json.loads(output.read_text())
    assert set(report["ratios"]) == set(report["spread"]) == RATIOS
    for name, ratio in report["ratios"].items():
        way, pair = name.split("_", 1)
        one, other = PAIRS[pair]
        seconds = report["seconds"][way]
        assert ratio == pytest.approx(seconds[one]["step"] / seconds[other]["step"])
        assert report["spread"][name] == [ratio, ratio]  # of one turn
        assert f"{name}: {ratio:.2f} (" in done.stdout
    for ways in report["seconds"].values():
        assert ways["reference"]["loss"] == pytest.approx(ways["ours"]["loss"], abs=1e-4)
        assert ways["floor"]["loss"] == pytest.approx(ways["lowered"]["loss"], abs=1e-4)
        assert ways["floor"]["loss"] > 0  # a cross-entropy
        assert ways["reference"]["tflop"] > ways["floor"]["tflop"] > ways["lowered"]["tflop"] > 0
        for way in ways.values():
            assert way["images a second"] == pytest.approx(3 / way["step"])


def test_the_operations_of_onednn_are_counted_as_those_of_torch(benchmark):
    layer, hidden = torch.nn.Linear(600, 500), torch.randn(3, 2, 600)
    with torch.no_grad(), narrow_products(layer), benchmark.operations_counter() as counter:
        layer(hidden)
    assert counter.get_total_flops() == 2 * 6 * 600 * 500


def test_losses_that_differ_end_the_measurement(benchmark, tmp_path, monkeypatch):
    trainer = benchmark.make_trainer(benchmark.small_models(tmp_path), "beam", 2, tmp_path)
    log_probs = benchmark.Reference.log_probs
    monkeypatch.setattr(benchmark.Reference, "log_probs", lambda *given: log_probs(*given) * 1.01)
    with pytest.raises(ValueError, match="turn -1: the loss of reference is .*, of ours "):
        benchmark.take_turns(trainer, 1)
