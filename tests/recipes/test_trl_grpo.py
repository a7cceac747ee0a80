"""A vision-language model trained by TRL on our pictures: with LoRA, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import tiny_vlm
from peft import PeftModel
from transformers import AutoModelForImageTextToText

pytestmark = pytest.mark.both_ends


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.build(tmp_path_factory.mktemp("vlm"))


def test_ten_steps_raise_the_reward_of_captions(vlm: Path, tmp_path: Path) -> None:
    forked.run(
        "trl_grpo.py", "--model_name_or_path", vlm, "--prompt", "describe", "--train_size", 64, "--max_steps", 10,
        "--per_device_train_batch_size", 32, "--num_generations", 4, "--max_completion_length", 12, "--top_k", 20,
        "--learning_rate", "3e-2", "--lr_scheduler_type", "constant", "--logging_steps", 1, "--use_cpu", "true",
        "--bf16", "false", "--save_steps", 10, "--memory_batches", 2, "--discriminator_weight", 0.06, "--use_peft",
        "true", "--lora_target_modules", "all-linear", "--output_dir", tmp_path,
    )  # fmt: skip
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    rewards = [log["rewards/contrastive/mean"] for log in state["log_history"]]
    assert len(rewards) == 10 and sum(rewards[-3:]) > sum(rewards[:3]) + 0.1
    assert (tmp_path / "checkpoint-10" / "contrastive.pt").is_file()
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(vlm), tmp_path)
    assert model.peft_config["default"].r == 16


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    cpu = ["--use_cpu", "true", "--bf16", "false", "--output_dir", tmp_path]
    done = forked.run("trl_grpo.py", *cpu, fails=True)
    assert "--model_name_or_path is missing: a vision-language model" in done.stderr
    done = forked.run("trl_grpo.py", *cpu, "--model_name_or_path", "x", "--dataset", "captions.json", fails=True)
    assert "--dataset captions.json needs --scorer" in done.stderr
