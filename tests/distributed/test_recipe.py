"""recipes/train.py, launched as README says, by two real processes of each kind: the run of one with the whole batch.

The encoder learns too. It runs outside of the wrapped model's forward, where a wrapper could lose its gradients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file
from torch.testing import assert_close

from hf_distinct import emoji_scenes, pipeline

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[2] / "recipes"
STEPS, BATCH, IMAGES, TEST_IMAGES = 3, 8, 64, 40
# Beam search writes the same captions whoever holds the image; SGD would show a gradient of the wrong length.
SETTINGS = {
    "dataset": "emoji_scenes", "train_size": IMAGES, "test_size": TEST_IMAGES, "max_steps": STEPS,
    "save_strategy": "steps", "save_steps": STEPS, "rollouts": "beam", "num_beams": 2, "baseline": "none",
    "freeze_encoder": False, "wtf_policy": "softmax", "wtf_weight": 1.0, "discriminator_weight": 0.2,
    "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0,
    "max_reference_length": tiny.MAX_LENGTH, "discriminator_pretrain_steps": 1, "logging_steps": 1,
}  # fmt: skip
OF_EVERYBODY = ("loss/policy_gradient", "loss/weighted_teacher_forcing", "reward/total/rollouts", "discriminator/loss")


def train(models: Path, output: Path, launcher: list[str], processes: int) -> Path:
    settings = SETTINGS | {
        "model_name_or_path": models / "captioner", "scorer": models / "scorer", "judge": models / "scorer",
        "output_dir": output, "per_device_train_batch_size": BATCH // processes,
    }  # fmt: skip
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(RECIPES.parent), "HF_HUB_OFFLINE": "1",
        # DeepSpeed looks for ninja there, which lies beside the interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    done = subprocess.run(
        [*launcher, str(RECIPES / "train.py"), *flags], env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.glob("*.*")} >= {"README.md", "metrics.json", "contrast.html", "contrast.png"}
    return output


def trace(output: Path) -> list[dict[str, float]]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "loss" in line]


@pytest.fixture(scope="module")
def of_one(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny_models, tmp_path_factory.mktemp("one") / "run", [sys.executable], processes=1)


@pytest.mark.parametrize("kind", ["ddp", "zero3"])
def test_two_processes_train_the_captioner_of_one(tiny_models: Path, of_one: Path, tmp_path: Path, kind: str):
    config = str(RECIPES / "accelerate" / f"{kind}.yaml")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    of_two = train(tiny_models, tmp_path / kind, launcher, processes=2)

    # Each process leaves its random state behind, and the batch has grown by their number.
    states = {path.name for path in (of_two / f"checkpoint-{STEPS}").glob("rng_state*")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}
    ours, theirs = trace(of_two), trace(of_one)
    assert [line["epoch"] for line in ours] == [step * BATCH / IMAGES for step in range(1, STEPS + 1)]
    for name in OF_EVERYBODY:
        values = [line[name] for line in theirs]
        assert [line[name] for line in ours] == pytest.approx(values, rel=1e-4, abs=1e-6)
        assert len(set(values)) == STEPS

    # Tied weights may be written twice; loading takes either.
    expected, found = (load_file(folder / "model.safetensors") for folder in (of_one, of_two))
    before = load_file(tiny_models / "captioner" / "model.safetensors")
    assert_close({name: found[name] for name in expected}, expected, atol=1e-5, rtol=1e-4)
    for part in ("encoder.encoder", "decoder"):
        assert max(float((found[n] - before[n]).abs().max()) for n in before if n.startswith(part)) > 1e-3

    captions = json.loads((of_two / "captions.json").read_text())
    assert captions == json.loads((of_one / "captions.json").read_text())
    first, after = captions["before"][""], captions["after"][""]
    assert len(after) == TEST_IMAGES and len(set(after)) > 1 and first != after
    describe = pipeline("image-to-text", model=of_two, device="cpu")
    pictures = emoji_scenes("test", TEST_IMAGES, seed=0).select(range(5))["image"]
    assert [describe(picture)[0]["generated_text"].strip() for picture in pictures] == after[:5]


def test_a_launch_that_starts_fewer_processes_than_it_was_asked_for_stops(tmp_path: Path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command = [*launcher, str(RECIPES / "train.py"), "--output_dir", str(tmp_path / "run")]
    environment = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"} | {"PYTHONPATH": str(RECIPES.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "asked for several processes but started one" in done.stderr
    assert not (tmp_path / "run").exists()
