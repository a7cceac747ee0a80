"""recipes/benchmarks/gpu.py: its rehearsal runs all that a GPU would, and its report tells what came of each part."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

RECIPES = Path(__file__).parents[3] / "recipes"
PARTS = ["tests", "step", "profile", "captioning", "embedding", "one process", "ZeRO-2", "photographs", "decoding"]
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPES.parent)}


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES / "benchmarks")
        return importlib.import_module("gpu")


@pytest.fixture(scope="module")
def gpu_parts(gpu):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPES / "benchmarks")
        return importlib.import_module("gpu_parts")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / "benchmarks" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
def test_the_rehearsal_is_green(tmp_path):
    done = run("--rehearse", "--output", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0, (done.stderr, report)
    states = {name: found["state"] for name, found in report["parts"].items()}
    assert list(states) == PARTS
    assert states.pop("photographs") == "left out: no folder of photographs was given"
    assert set(states.values()) == {"done"}
    figures = {name: found.get("figures") for name, found in report["parts"].items()}
    for precision in ("bf16", "float32"):
        for rollouts in ("sample", "beam"):
            point = figures["step"][f"{precision}, {rollouts}, 2 images"]
            assert point[f"{rollouts}_vs_reference"][0] > 0 and point[f"{rollouts}_vs_floor"][0] > 0
            assert point["ours"]["score"] > 0 and point["ours"]["peak_gib"] > 0
            # Operations of scoring and backward are most of those of a step.
            assert 0.3 < point["use of the matrix rate"]["TFLOP"] / point["ours"]["tflop"] < 1
        for way in ("ours", "static cache"):
            assert figures["decoding"][f"{way}, {precision}"]["same captions"] == 1
    for way in ("sample", "beam"):
        phases = figures["profile"][way]["phases"]
        assert set(phases) == {"step", "encode", "generate", "reward", "score", "backward"}
        assert all(0 < phase["device busy"] <= 1 and phase["kernels"] > 0 for phase in phases.values())
    text = (tmp_path / "report.md").read_text()
    assert all(said in text for said in ("## tests: done", "13 passed", "caption, read ahead", "train_runtime"))


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_is_told_and_the_others_run(gpu, tmp_path):
    sleeps = "import subprocess; own = subprocess.Popen(['sleep', '600']); print(own.pid, flush=True); own.wait()"
    slow = gpu.run(gpu.Part("slow", ["-c", sleeps], 60), tmp_path, 10)
    assert slow["state"] == "cut off after 10 s"
    (child,) = map(int, slow["said"])
    _, alive = psutil.wait_procs([each for each in psutil.process_iter() if each.pid == child], timeout=30)
    assert all(each.status() == psutil.STATUS_ZOMBIE for each in alive)  # its child is ended, too
    fails = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); sys.exit('no luck')"
    command = ["-c", fails, str(tmp_path / "fails.json"), json.dumps({"a": {"b": 0.5}})]
    failed = gpu.run(gpu.Part("fails", command, 60), tmp_path, 60)
    assert failed["state"] == "failed with status 1" and failed["said"] == ["no luck"]
    assert failed["figures"] == {"a": {"b": 0.5}}  # what was measured before
    assert gpu.run(gpu.Part("late", ["-c", ""], 60), tmp_path, 3) == {"state": "left out: no time was left"}
    gpu.write({"machine": {"device": "CPU"}, "parts": {"fails": failed, "slow": slow}}, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## fails: failed with status 1, " in text and "- a: b 0.5\n" in text and f"{child}\n" in text


def test_only_what_is_lacking_is_installed_and_an_empty_folder_is_an_error(gpu, tmp_path):
    with pytest.raises(SystemExit, match=f"{tmp_path} holds no wheels"):
        gpu.install(tmp_path)
    (tmp_path / "pytest-0.1-py3-none-any.whl").touch()  # which is here, in another version
    assert gpu.install(tmp_path) == "nothing: all of it was there"
    (tmp_path / "lacking_here-0.1-py3-none-any.whl").touch()  # which is no wheel
    with pytest.raises(SystemExit, match="pip could not install lacking_here-0.1-py3-none-any.whl"):
        gpu.install(tmp_path)
    assert not gpu.is_installed("lacking_here")


def test_a_part_that_is_not_there_is_an_error(tmp_path):
    done = run("--only", "step", "stairs", "--output", tmp_path)
    assert done.returncode == 2 and "no such part: stairs; there are tests, step, " in done.stderr


def test_covered_by_hand(gpu_parts):
    assert gpu_parts.covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4
    assert gpu_parts.covered([]) == 0
