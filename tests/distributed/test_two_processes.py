"""Two real processes, started as README says, with half of the batch each: the run of one process with the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
DDP = TESTS.parent / "recipes" / "accelerate" / "ddp.yaml"
# Beam search writes the same captions whoever holds the image; every part of the method that spans processes is on.
# SGD, because Adam would hide a gradient of the wrong length.
SETTINGS = {
    "rollouts": "beam", "num_beams": 2, "max_steps": 4, "optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0,
    "pool_neighbours": 1, "pool_greedy": True, "memory_batches": 1, "references_per_image": 2,
    "wtf_policy": "softmax", "discriminator_weight": 0.3, "discriminator_lr": 1e-3, "discriminator_pretrain_steps": 1,
}  # fmt: skip
OF_EVERYBODY = ("loss/policy_gradient", "loss/weighted_teacher_forcing", "reward/contrastive/rollouts", "length")


def launch(models: Path, output: Path, launcher: list[str], **settings: object) -> dict:
    command = [*launcher, str(Path(__file__).parent / "train.py"), str(models), str(output)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [*command, json.dumps({**SETTINGS, **settings})]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return torch.load(output / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def runs(tiny_models, tmp_path_factory):
    """What came of two processes with two images each, and of one with four."""
    folder = tmp_path_factory.mktemp("runs")
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(DDP)]
    return (
        launch(tiny_models, folder / "two", accelerate, per_device_train_batch_size=2),
        launch(tiny_models, folder / "one", [sys.executable], per_device_train_batch_size=4),
    )


def test_there_really_were_two_and_one(runs):
    two, one = runs
    assert len(set(two["processes"])) == 2 and two["backend"] == "gloo"
    assert len(one["processes"]) == 1 and one["backend"] is None


def test_losses_are_the_same(runs):
    two, one = runs
    assert len(one["losses"]) == 4 and len(set(one["losses"].tolist())) == 4
    torch.testing.assert_close(two["losses"], one["losses"], atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(two["log"], one["log"], strict=True):
        for name in OF_EVERYBODY:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)


def test_weights_of_captioner_and_discriminator_are_the_same(runs):
    two, one = runs
    for part in ("weights", "discriminator"):
        torch.testing.assert_close(two[part], one[part], atol=1e-5, rtol=1e-4)


def test_both_remember_the_same_texts_and_images(runs):
    (ours,), (theirs,) = (run["memory"] for run in runs)
    for ids in ("text_ids", "text_image_ids", "image_ids"):
        assert sorted(ours[ids].tolist()) == sorted(theirs[ids].tolist())
    assert len(ours["text_ids"]) == 4 * (1 + 2 + 1) and len(ours["image_ids"]) == 4 * 2


def test_every_process_gets_all_captions(runs):
    """5 pictures do not halve evenly."""
    two, one = runs
    assert two["captions"] == [one["captions"][0]] * 2
    assert len(one["captions"][0]) == 5
