"""recipes/benchmarks/growth.py: its curves and verdicts on known numbers, its data, and a few stages of few images."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import forked
import pytest

from hf_distinct import load_captions

FOLDER = forked.RECIPES / "benchmarks"


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # as python does for a script
        return importlib.import_module("growth")


@pytest.mark.parametrize(("fixed", "rate", "exponent"), [(0.5, 1e-4, 1.0), (0.0, 1e-8, 2.0), (3.0, 1e-5, 1.3)])
def test_curve_through_known_values(recipe, fixed, rate, exponent):
    values = {size: fixed + rate * size**exponent for size in (1000, 10_000, 100_000)}
    found = recipe.fit(values)
    assert found == pytest.approx((fixed, rate, exponent), rel=1e-3, abs=1e-6)
    assert found.at(600_000) == pytest.approx(fixed + rate * 600_000**exponent, rel=1e-3)


def test_small_differences_are_no_growth(recipe):
    assert recipe.fit({1000: 0.26, 10_000: 0.25, 100_000: 0.28}) == (0.28, 0, 0)
    assert recipe.fit({1000: 0.1, 10_000: 0.3, 100_000: 0.5}, noise=0.5).exponent == 0
    assert recipe.fit({1000: 0.1, 10_000: 0.3, 100_000: 0.5}, noise=0.1).exponent > 0


def found(**stages):
    """Of each stage its CPU seconds at 1,000 images and at 100,000."""
    sizes = ("1000", "100000")
    return {
        name.replace("_", " "): {size: {"cpu": value} for size, value in zip(sizes, values, strict=False)}
        for name, values in stages.items()
    }


def test_verdicts_by_hand(recipe):
    of_two = found(start=(1.0, 101.0), pair=(2.0, 122.0), steps=(5.0, 5.0))

    def judge(stage, *more, **how):
        row = recipe.Target(stage, "cpu", *more, **how).judge(of_two)
        return row and (float(row["found"].strip("~")), row["verdict"])

    assert judge("start", 101.0) == (101.0, "met") and judge("start", 100.0) == (101.0, "missed")
    assert judge("start", 99.0, above="smallest") == (100.0, "missed")
    assert judge("start", 95.9, above="steps") == (96.0, "missed")
    assert judge("pair", 1.2, above="smallest", times="start") == (1.2, "met")
    assert judge("start", 1000.0, per_image=True) == (101e6 / 1e5, "missed")
    assert judge("unknown", 1.0) is None
    guessed = recipe.Target("steps", "cpu", 5.0, 600_000).judge(of_two)
    assert guessed["found"] == "~5" and guessed["verdict"] == "met"
    assert recipe.Target("start", "cpu", 5.0, 600_000).judge(found(start=(1.0,))) is None  # one number tells no curve
    assert judge("steps", 5.0, 1_000_000) == (5.0, "met") and judge("steps", 5.0, 1_000_001) is None  # too far away


def test_a_stage_that_would_take_too_long_is_left_out(recipe):
    of_two = {"slow": {"1000": {"cpu": 1.0, "memory": 1e3}, "10000": {"cpu": 100.0, "memory": 1e3}}}
    assert recipe.too_much(of_two, "slow", 100_000, minutes=3.0) == "it would take 167 minutes (--minutes 3)"
    assert recipe.too_much(of_two, "slow", 100_000, minutes=170.0) is None
    of_two["slow"]["10000"]["memory"] = 1e5
    assert recipe.too_much(of_two, "slow", 100_000, minutes=170.0) == "it would take 10000.0 GB"


def test_all_forms_hold_the_same_captions(tmp_path, recipe, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    recipe.make_data(tmp_path, 1100)
    forms = [load_captions(tmp_path / form)["train"] for form in ("images", "shards", "parquet")]
    forms.append(load_captions(tmp_path / "karpathy.json", tmp_path / "images")["train"])
    captions = [sorted(form["captions"][:]) for form in forms]
    assert len(captions[0]) == 1100 and {len(own) for own in captions[0]} == {5}
    assert all(each == captions[0] for each in captions)
    said = json.loads((tmp_path / "said.json").read_text())
    assert [each["image_id"] for each in said] == list(range(1100))
    links = {os.stat(path).st_nlink for path in (tmp_path / "images").rglob("*.jpg")}
    assert links == {1000, 100}
    recipe.make_data(tmp_path / "few", 100)  # is the beginning of the larger data
    assert json.loads((tmp_path / "few" / "said.json").read_text()) == said[:100]


@pytest.mark.slow
def test_stages_are_measured_and_shown(tmp_path):
    names = ["Karpathy JSON", "embedding", "embedded, second process", "first step", "captioning's start"]
    command = [sys.executable, str(FOLDER / "growth.py"), "--images", "100", "--folder", str(tmp_path)]
    command += ["--output", str(tmp_path / "growth.json"), "--stages", *names]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FOLDER.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "growth.json").read_text())["stages"]
    for name in names:
        row = stages[name]["100"]
        assert row["cpu"] > 0 and 0 <= row["memory"] < 2000 and row["resident"] > 0, row
    embeddings = 100 * 6 * 128 * 2 / 1e6
    assert embeddings < stages["embedding"]["100"]["written"] < 3 * embeddings  # in parts, and joined
    assert "| Karpathy JSON | memory, MB | 100 | 200 | " in done.stdout


def test_unknown_stage_is_an_error():
    done = forked.run("benchmarks/growth.py", "--stages", "dreaming", fails=True)
    assert "--stages 'dreaming' is unknown: choose among checks of files, Karpathy JSON, " in done.stderr
