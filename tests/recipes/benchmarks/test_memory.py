"""recipes/benchmarks/memory.py: its arithmetic on numbers that are known, and a point as a person measures it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RECIPE = Path(__file__).parents[3] / "recipes" / "benchmarks" / "memory.py"
COMMAND = [sys.executable, str(RECIPE)]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(RECIPE.parents[2]), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(RECIPE.parent)  # as python does for a script
        return importlib.import_module(RECIPE.stem)


def rows(**values):
    """Of points "images x rollouts", each with a peak in GiB."""
    shapes = [map(int, point[1:].split("x")) for point in values]
    return [{"images": i, "rollouts": k, "resident": v} for (i, k), v in zip(shapes, values.values(), strict=True)]


def test_plane_of_known_points(recipe):
    # 1 GiB, and 8 MiB an image and 2 MiB a rollout: 1024 + 8 + 2, 1024 + 32 + 8, 1024 + 32 + 40 MiB
    found = recipe.plane(rows(_1x1=1034 / 1024, _4x1=1064 / 1024, _4x5=1096 / 1024), "resident")
    assert found == pytest.approx({"fixed": 1024, "image": 8, "rollout": 2, "distance": 0}, abs=1e-6)
    # Two measurements of one point that are 4 MiB apart: the plane lies halfway.
    found = recipe.plane(rows(_1x1=1, _4x1=2, _4x5=3) + rows(_4x5=3 + 4 / 1024), "resident")
    assert found["distance"] == pytest.approx(2)


def test_no_plane_of_points_that_do_not_tell_its_numbers_apart(recipe):
    assert recipe.plane(rows(_1x5=1, _2x5=2, _4x5=3), "resident") == {}
    assert recipe.plane([], "resident") == {}


def test_bytes_of_what_tensors_share_count_once(recipe):
    weight = torch.zeros(10)
    assert recipe.size_of({"a": [weight, weight[2:]], "b": torch.zeros(3, dtype=torch.float16), "c": "a name"}) == 46


@pytest.mark.slow
def test_memory_of_a_point_and_of_what_is_held(tmp_path, recipe):
    command = [*COMMAND, "--points", "4x2", "--output", str(tmp_path / "memory.json")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "memory.json").read_text())
    row, held = report["points"]["4x2"], report["points"]["4x2"]["held"]
    assert f"{row['resident']:.2f}" in done.stdout
    assert row["at"] in done.stdout
    # Of two images and captions of 128 numbers in half precision; float32 has twice as much; the optimiser two of each
    # weight, and a count of its steps.
    assert held["a cached image"] == held["a cached caption"] == 256
    assert report["coco_embeddings"] == (113_287 + 566_747) * 256
    assert held["discriminator"] == 4 * ((256 + 1) * 512 + (512 + 1) * 256 + (256 + 1) * 2)
    assert 0 < held["its Adam"] - 2 * held["discriminator"] < 100
    assert 0 < held["its AdamW"] - 2 * held["its gradients"] < 1000
    assert held["its gradients"] == held["captioner"]
    # Of each image: its embedding and id; of two rollouts, a reference and a greedy caption: embedding, ids and kind.
    assert held["a batch in the memory of pools"] == 4 * (5 * 128 * 4 + 4 * 3 * 8 + 8)
    least = sum(held[name] for name in ("captioner", "its AdamW", "CLIP", "discriminator")) / 2**30
    assert least < row["tensors"] < row["resident"]

    frozen = recipe.measure("small", "4x2+freeze_encoder")
    assert frozen["held"]["its gradients"] < held["its gradients"]
    assert frozen["held"]["its AdamW"] < held["its AdamW"]
    assert frozen["tensors"] < row["tensors"]


def test_unknown_setting_is_an_error(recipe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["memory.py", "--points", "4x2", "4x2+fp8"])
    with pytest.raises(ValueError, match=r"--points 4x2\+fp8: the settings to switch on are gradient_checkpointing, "):
        recipe.main()
