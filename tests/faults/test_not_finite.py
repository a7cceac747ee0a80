"""A step whose rewards or loss are NaN or infinite is left out and counted; a run of such steps ends the training."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_distinct.files import checkpoints
from hf_distinct.training.void_steps import SKIPPED_IN_A_ROW


def flaky(*bad_calls, row=0, value=math.nan):
    """A reward that gives one value that is not finite at some of its calls, counted from 1."""
    calls = itertools.count(1)

    def flaky(captions):
        rewards = [len(caption) / 10 for caption in captions]
        if next(calls) in bad_calls:
            rewards[row] = value
        return rewards

    return flaky


OF_TWO = {"max_steps": 3, "optim": "sgd", "memory_batches": 2, "save_strategy": "steps", "save_steps": 3}


class Watcher(TrainerCallback):
    """Keeps the weights and the optimiser's counts as each step left them."""

    def __init__(self):
        self.weights, self.counts = [], []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.weights.append(tiny.weights(model))
        self.counts.append(max(int(each["step"]) for each in optimizer.state.values()))


def train(make_trainer, reward, **settings):
    trainer = make_trainer(rewards=[reward], **{"max_steps": 3, "weight_decay": 0.1} | settings)
    watcher = Watcher()
    trainer.add_callback(watcher)
    trainer.train()
    return trainer, watcher


# Row 0 is a rollout, row -1 a ground-truth caption.
@pytest.mark.parametrize(("row", "value"), [(0, math.nan), (0, math.inf), (-1, math.nan), (-1, -math.inf)])
def test_the_step_is_left_out_named_and_counted(make_trainer, caplog, row, value):
    trainer, watcher = train(make_trainer, flaky(2, row=row, value=value))
    embedding = "decoder.transformer.wte.weight"
    assert not torch.equal(watcher.weights[1][embedding], watcher.weights[2][embedding])
    assert all(torch.equal(watcher.weights[0][name], weight) for name, weight in watcher.weights[1].items())
    assert watcher.counts == [1, 1, 2] and trainer.void_steps.count == 1
    assert f"step 2 is skipped: reward 'flaky' is {value} for image 'train-0-" in caplog.text
    assert [line.get("skipped_steps") for line in trainer.state.log_history[:3]] == [None, 1, 1]
    assert all(math.isfinite(x) for line in trainer.state.log_history for x in line.values())


def test_one_bad_batch_of_several_that_make_a_step_voids_it(make_trainer):
    trainer, watcher = train(make_trainer, flaky(3), gradient_accumulation_steps=2, per_device_train_batch_size=2)
    assert all(torch.equal(watcher.weights[0][name], weight) for name, weight in watcher.weights[1].items())
    assert watcher.counts == [1, 1, 2] and trainer.void_steps.count == 1


def test_a_run_of_them_ends_the_training_with_the_images(make_trainer):
    bad = range(2, 2 + SKIPPED_IN_A_ROW)
    trainer = make_trainer(rewards=[flaky(*bad)], max_steps=20)
    with pytest.raises(ValueError) as caught:
        trainer.train()
    last = trainer.state.global_step + 1
    assert last == 1 + SKIPPED_IN_A_ROW
    assert f"the last one step {last} with the images train-0-" in str(caught.value)
    assert str(caught.value).count("train-0-") == 4


def test_as_many_that_are_not_in_a_row_do_not(make_trainer):
    trainer, _ = train(make_trainer, flaky(*set(range(2, 3 + SKIPPED_IN_A_ROW)) - {4}), max_steps=8)
    assert trainer.state.global_step == 8 and trainer.void_steps.count == SKIPPED_IN_A_ROW


def test_a_loss_that_is_not_finite_counts_too(make_trainer, caplog):
    trainer = make_trainer(rewards=[flaky()], max_steps=20, kl_weight=0.1)
    with torch.no_grad():
        trainer.reference_model.decoder.transformer.h[0].mlp.c_proj.bias[0] = math.nan
    with pytest.raises(ValueError, match=f"{SKIPPED_IN_A_ROW} steps in a row"):
        trainer.train()
    assert "step 1 is skipped: the loss is nan" in caplog.text


@pytest.mark.slow
def test_two_processes_leave_out_the_same_step_and_one_takes_up_their_run(
    tiny_models, make_trainer, tmp_path, run_processes, caplog
):
    """The reward of process 1 alone is NaN, in step 2."""
    script = Path(__file__).parent / "nan_in_one.py"
    run_processes(str(script), *[(tiny_models, tmp_path)] * 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for found in (first, second):
        assert found["skipped"] == 1 and found["losses"].isnan().tolist() == [False, True, False]
        assert all(torch.equal(found["weights"][0][name], weight) for name, weight in found["weights"][1].items())
    assert all(torch.equal(second["weights"][2][name], weight) for name, weight in first["weights"][2].items())
    assert any(not torch.equal(first["weights"][1][name], weight) for name, weight in first["weights"][2].items())

    alone = make_trainer(tmp_path, rewards=[flaky()], **OF_TWO | {"max_steps": 4})
    alone.train(resume_from_checkpoint="true")
    assert "was written by 2 processes and there are 1 now" in caplog.text and "Not exact: " in caplog.text
    assert alone.state.global_step == 4 and len(alone.step_losses) == 1 and alone.void_steps.count == 1
    assert [len(batch["image_ids"]) for batch in alone.appraiser.pools.memory] == [4, 4]  # of the two, and its own


def spoil_gradient(trainer, *backwards):
    """Make one gradient NaN in some backward passes, counted from 1; the losses stay finite."""
    calls = itertools.count(1)
    trainer.model.decoder.transformer.wpe.weight.register_hook(
        lambda gradient: gradient * math.nan if next(calls) in backwards else None
    )


def test_a_gradient_that_is_not_finite_makes_no_step(make_trainer, caplog):
    trainer = make_trainer(max_steps=3, logging_steps=1)
    spoil_gradient(trainer, 2)
    watcher = Watcher()
    trainer.add_callback(watcher)
    trainer.train()
    assert all(math.isfinite(loss) for loss in trainer.step_losses) and len(trainer.step_losses) == 3
    first, second, third = watcher.weights
    assert all(torch.equal(first[name], weight) for name, weight in second.items())
    assert not all(torch.equal(second[name], weight) for name, weight in third.items())
    assert all(weight.isfinite().all() for weight in third.values())
    assert trainer.void_steps.count == 1 and watcher.counts == [1, 1, 2]
    assert "step 2 is skipped: The gradient of decoder.transformer.wpe.weight is NaN or infinite" in caplog.text


def test_a_run_of_such_gradients_ends_the_training_and_the_good_checkpoint_stays(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, max_steps=20, save_strategy="steps", save_steps=1, save_total_limit=1)
    spoil_gradient(trainer, *range(2, 20))
    with pytest.raises(ValueError, match=f"{SKIPPED_IN_A_ROW} steps in a row .* step 6 .* Lower learning_rate"):
        trainer.train()
    saved = load_file(checkpoints.newest_whole(tmp_path) / "model.safetensors")
    assert all(weight.isfinite().all() for weight in saved.values())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_not_saved_and_what_was_saved_stays(make_trainer, tmp_path, value):
    trainer = make_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    good = (tmp_path / "saved" / "model.safetensors").read_bytes()
    with torch.no_grad():
        trainer.model.decoder.transformer.ln_f.bias[3] = value
    message = r"After step 1: The weights .*decoder.transformer.ln_f.bias are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        trainer.save_model(str(tmp_path / "saved"))
    trainer.state.global_step = 2
    with pytest.raises(ValueError, match="After step 2"):
        trainer._save_checkpoint(trainer.model, None)
    assert (tmp_path / "saved" / "model.safetensors").read_bytes() == good
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-1"
