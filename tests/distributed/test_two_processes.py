"""Two real processes, started as README says, with half of the batch each: the run of one process with the whole.

Every launch trains all of its cases. Beam search writes the same captions whoever holds the image. SGD, because Adam
would hide a gradient of the wrong length; it is what DeepSpeed offloads, and has a case of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "recipes" / "accelerate"
BATCH = 4
# Every part of the method that spans processes is on.
SETTINGS = {
    "rollouts": "beam", "num_beams": 2, "max_steps": 4, "optim": "sgd", "learning_rate": 0.3, "max_grad_norm": 0.0,
    "pool_neighbours": 1, "pool_greedy": True, "memory_batches": 1, "references_per_image": 2, "kl_weight": 0.5,
    "wtf_policy": "softmax", "discriminator_weight": 0.3, "discriminator_lr": 1e-3, "discriminator_pretrain_steps": 1,
}  # fmt: skip
# Nine images: batches of 4, 4 and 1, which leaves a process without any; eleven: 4, 4 and 3, or 2 and 1 for each.
NINE, ELEVEN = ({"images": images, "dataloader_drop_last": False} for images in (9, 11))
THE_BEST = {"eval_strategy": "steps", "metric_for_best_model": "CIDEr-D", "load_best_model_at_end": True}
CASES = {
    "method": {},
    "ragged": {**NINE, "discriminator_pretrain_steps": 4, "max_steps": 5},
    "sampled": {
        **NINE, "rollouts": "sample", "num_rollouts": 3, "same_samples": True, "reward": ["contrastive", "similarity"],
        "baseline": "leave_one_out", "pool_greedy": False, "discriminator_pretrain_steps": 0,
    },
    "accumulated": {**ELEVEN, "gradient_accumulation_steps": 2, "max_grad_norm": 0.05, "gradient_checkpointing": True},
    "adapters": {"lora": True, "gradient_checkpointing": True, "max_steps": 2},
    "adam": {
        "optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear", "max_grad_norm": 0.05,
        "save_strategy": "steps", "save_steps": 2, "judged": [1.0, 2.0], "eval_steps": 2, **THE_BEST,
    },
    "spoiled": {
        "spoil": "train-0-5", "max_steps": 6, "gradient_accumulation_steps": 2, "max_grad_norm": 0.05,
        "lr_scheduler_type": "linear",
    },
    "stopped": {
        "max_steps": 6, "alarms": "stop", "save_strategy": "best", "judged": [1.0, 1.5, 0.5, 0.4, 2.0, 2.0],
        "eval_steps": 1, **THE_BEST,
    },
    "trained_scorer": {
        **NINE, "train_scorer": "text", "scorer_lr": 1e-3, "scorer_decay": 0.5,
        "scorer_loss_weights": [1.0, 1.0, 1.0, 1.0],
    },
    "bf16": {"bf16": True, "learning_rate": 1e-3, "max_steps": 2},
}  # fmt: skip
PLAN = {
    "one_process": list(CASES),
    "ddp": list(CASES),
    "zero1": ["ragged", "adapters"],
    "zero2": ["ragged", "accumulated", "adapters", "spoiled", "adam", "stopped"],
    "zero2_offload": ["adam"],
    "zero3": ["ragged", "accumulated", "adapters", "spoiled", "adam", "stopped"],
}
OF_OTHER_CAPTIONERS = ["ragged", "adapters"]
MACHINES = "zero2"  # this one is launched as if each process had a machine of its own


def launched(kind: str, *case: str) -> Any:
    """A test of a launch; those with DeepSpeed are slow."""
    return pytest.param(kind, *case, marks=[pytest.mark.slow] if kind.startswith("zero") else [])


def start(
    models: Path, output: Path, kind: str, *flags: str, names: list[str] | None = None, **again: Any
) -> subprocess.Popen:
    size = BATCH if kind == "one_process" else BATCH // 2
    cases = {name: {**SETTINGS, **CASES[name], "per_device_train_batch_size": size} for name in names or PLAN[kind]}
    if again:
        cases = {"adam": cases["adam"] | again}
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        # DeepSpeed looks for ninja there, which lies beside the interpreter.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{kind}.yaml")]
    script = [str(Path(__file__).parent / "train.py"), str(models), str(output), json.dumps(cases)]
    return subprocess.Popen([*launcher, *flags, *script], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(tiny_models, folder):
    """What came of all cases of a kind of launch; each is launched once."""

    @cache
    def run(kind: str) -> dict:
        meeting: list[list[str]] = [[]]
        if kind == MACHINES:
            port = str(tiny.free_port())
            place = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
            meeting = [[*place, "--machine_rank", str(rank)] for rank in range(2)]
        started = [start(tiny_models, folder / kind, kind, *flags) for flags in meeting]
        tiny.finish(started, timeout=600)
        return torch.load(folder / kind / "found.pt", weights_only=True)

    return run


def test_every_launch_configuration_is_tried():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(PLAN)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [launched(kind) for kind in PLAN])
def test_there_really_are_as_many_processes(run, kind):
    for found in run(kind).values():
        assert len(set(found["processes"])) == (1 if kind == "one_process" else 2)
        assert found["backend"] == (None if kind == "one_process" else "gloo")


@pytest.mark.parametrize(
    ("kind", "case"), [launched(kind, case) for kind in PLAN if kind != "one_process" for case in PLAN[kind]]
)
def test_it_is_the_run_of_one_process(run, kind, case):
    """Losses, everything that is logged, weights, discriminator; in half precision as near as that is."""
    two, one = run(kind)[case], run("one_process")[case]
    near = {"atol": 1e-2, "rtol": 1e-2} if case == "bf16" else {"atol": 2e-5, "rtol": 1e-4}
    assert len(set(one["losses"].tolist())) == len(one["losses"]) >= 2
    assert_close(two["losses"], one["losses"], equal_nan=True, **near)
    named = {"kl", "unique", "length", "loss", "reward/total/rollouts_std", "reference_weight"}
    assert set().union(*one["log"]) >= named
    for ours, theirs in zip(two["log"], one["log"], strict=True):
        figures = [name for name in theirs if not name.startswith(("time/", "memory/"))]
        assert {n: ours[n] for n in figures} == pytest.approx({n: theirs[n] for n in figures}, abs=near["atol"] * 5)
    assert_close(two["discriminator"], one["discriminator"], **near)
    if case != "adam":  # Adam makes a step of what should be zero, and is not because of rounding
        assert_close({name: two["weights"][name] for name in one["weights"]}, one["weights"], **near)


@pytest.mark.parametrize(
    ("kind", "case"), [launched(*each) for each in (("ddp", "sampled"), ("zero2", "ragged"), ("zero3", "ragged"))]
)
def test_generation_ends_earlier_on_one_process_and_nobody_waits(run, kind, case):
    first, second = run(kind)[case]["lengths"]
    assert any(ours != theirs for ours, theirs in zip(first, second, strict=kind != "ddp"))


@pytest.mark.parametrize("kind", [launched(kind) for kind in PLAN if "stopped" in PLAN[kind]])
def test_what_one_process_measures_stops_all_at_the_best_checkpoint(run, folder, kind):
    """The other one measured something else. Later steps were not better: what all have, and save, is of step 2."""
    found = run(kind)["stopped"]
    assert found["best"] == [2, "step 4: stopped"]
    best, saved = (folder / kind / "stopped" / name for name in ("checkpoint-2", "saved"))
    for name, weight in load_file(best / "model.safetensors").items():
        assert torch.equal(found["weights"][name], weight)
    assert len(set(found["copies"])) == 1
    for name in ("model.safetensors", "discriminator.safetensors"):
        assert (saved / name).read_bytes() == (best / name).read_bytes()


@pytest.mark.parametrize("kind", [launched(kind) for kind in PLAN if "spoiled" in PLAN[kind]])
def test_a_step_that_is_void_in_one_process_is_void_in_all(run, kind):
    """The image with the NaN comes once in each of three epochs, whose two steps are of two batches and of one."""
    found = run(kind)["spoiled"]
    assert found["losses"].isnan().sum() == 3 == found["log"][-1]["skipped_steps"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "processes"), [("zero2", 1), ("zero3", 1), ("zero2_offload", 2)])
def test_a_checkpoint_of_deepspeed_is_taken_up_by_as_many_processes_or_by_others(
    run, folder, tiny_models, kind, processes
):
    whole = run(kind)["adam"]
    again = {
        "resume": str(folder / kind / "adam" / "checkpoint-2"), "per_device_train_batch_size": BATCH // processes,
        "judged": [3.0],  # the best is the last, which as many processes wrote as there are now
    }  # fmt: skip
    output = folder / f"{kind}_again"
    tiny.finish([start(tiny_models, output, kind, "--num_processes", str(processes), **again)])
    found = torch.load(output / "found.pt", weights_only=True)["adam"]
    assert len(set(found["processes"])) == processes
    near = {"atol": 0, "rtol": 0} if processes == 2 else {"atol": 2e-5, "rtol": 1e-4}
    assert_close(found["losses"], whole["losses"][2:], **near)
    for part in ("weights", "discriminator"):
        assert_close(found[part], whole[part], **near)
    for ours, theirs in zip(found["log"], whole["log"], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero2", "zero3"])
def test_captioners_of_other_classes_train_as_in_one_process(other_models, tmp_path, kind):
    found = []
    for each in ("one_process", kind):
        tiny.finish([start(other_models, tmp_path / each, each, names=OF_OTHER_CAPTIONERS)], timeout=600)
        found.append(torch.load(tmp_path / each / "found.pt", weights_only=True))
    for case in OF_OTHER_CAPTIONERS:
        one, two = (each[case] for each in found)
        assert len(set(two["processes"])) == 2
        assert len(set(one["losses"].tolist())) == len(one["losses"]) >= 2
        assert_close(two["losses"], one["losses"], atol=2e-5, rtol=1e-4)
        assert_close({name: two["weights"][name] for name in one["weights"]}, one["weights"], atol=2e-5, rtol=1e-4)
        assert two["captions"] == 2 * one["captions"]


def test_clipping_clips(run):
    norms = [line["grad_norm"] for line in run("one_process")["accumulated"]["log"]]
    assert min(norms) > CASES["accumulated"]["max_grad_norm"]


@pytest.mark.slow
def test_zero3_gathers_the_weights_for_a_rollout_and_not_for_each_token(run):
    (short, two_tokens), (long, more) = run("zero3")["ragged"]["gathers"]
    assert two_tokens == 2 and more > 2
    assert short == long > 0
    assert [found for found, _ in run("zero2")["ragged"]["gathers"]] == [0, 0]


@pytest.mark.slow
def test_an_optimiser_that_deepspeed_would_replace_is_refused(run, folder):
    assert run("zero2_offload")
    assert "optim=sgd cannot be offloaded" in (folder / "zero2_offload" / "refused.txt").read_text()


def test_both_remember_the_same_texts_and_images(run):
    (ours,), (theirs,) = (run(kind)["method"]["memory"] for kind in ("ddp", "one_process"))
    for ids in ("text_ids", "text_image_ids", "image_ids"):
        assert sorted(ours[ids].tolist()) == sorted(theirs[ids].tolist())
    assert len(ours["text_ids"]) == 4 * (2 + 2 + 1) and len(ours["image_ids"]) == 4 * 2


def test_every_process_gets_all_captions(run):
    """5 pictures do not halve evenly."""
    two, one = run("ddp")["method"]["captions"], run("one_process")["method"]["captions"]
    assert two == [one[0]] * 2 and len(one[0]) == 5
