"""What the trainer saves: checkpoints to take a run up from, and a captioner that needs nothing of this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import plain_captions
import pytest
import tiny
import torch
from transformers import TrainerCallback
from transformers.utils import logging

pytestmark = pytest.mark.both_ends


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_is_the_same_run_to_the_bit(make_trainer, tmp_path, stop):
    """Six steps, two epochs of three batches; taken up in the middle of an epoch, and at its end."""
    settings = {
        "max_steps": 6, "memory_batches": 2, "pool_neighbours": 1, "kl_weight": 0.1, "discriminator_weight": 0.3,
        "discriminator_lr": 1e-2, "discriminator_pretrain_steps": 1, "lr_scheduler_type": "linear",
        "wtf_policy": "softmax", "references_per_image": 2, "save_strategy": "steps", "save_steps": stop,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "run", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "again", **settings)
    torch.rand(99)  # the random state, too, must come from the checkpoint
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert len(whole.step_losses) == 6
    assert resumed.step_losses == whole.step_losses[stop:]
    assert len(set(whole.step_losses)) == 6
    assert tiny.moved(tiny.weights(whole.model), resumed.model) == set()
    assert tiny.moved(tiny.weights(whole.discriminator.discriminator), resumed.discriminator.discriminator) == set()
    assert resumed.discriminator.steps == whole.discriminator.steps == 7
    assert len(whole.appraiser.pools.memory) == len(resumed.appraiser.pools.memory) == 2
    for ours, theirs in zip(whole.appraiser.pools.memory, resumed.appraiser.pools.memory, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) and len(ours) == 6


def test_a_checkpoint_of_another_trainer_is_taken_up_with_a_warning(make_trainer, tmp_path, caplog):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    for ours in ("rl_state.pt", "complete.json"):
        (tmp_path / "run" / "checkpoint-1" / ours).unlink()
    again = make_trainer(max_steps=2)
    logging.enable_propagation()
    try:
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    finally:
        logging.disable_propagation()
    assert "rl_state.pt is missing: discriminator and memory start from scratch" in caplog.text


def test_a_saved_captioner_gives_the_same_captions_in_a_plain_pipeline(make_trainer, tmp_path):
    dataset = tiny.scenes()
    trainer = make_trainer(max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    captions = trainer.caption(dataset)
    assert len(set(captions)) > 1 and all(captions)
    for number, picture in enumerate(dataset["image"]):
        picture.save(tmp_path / f"{number:02}.png")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, plain_captions.__file__, str(tmp_path / "model"), *sorted(map(str, tmp_path.glob("*.png")))],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == captions


def test_a_checkpoint_of_deepspeed_is_not_taken_up_without_its_optimiser(make_trainer, tmp_path):
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    (checkpoint / "global_step1").mkdir()
    with pytest.raises(ValueError, match=f"written with DeepSpeed.*--model_name_or_path {checkpoint}"):
        make_trainer(max_steps=2).train(resume_from_checkpoint=str(checkpoint))


def test_a_run_that_has_moved_keeps_its_best_checkpoint(make_trainer, tmp_path):
    """Its state names the best by the path of then; one checkpoint beside it may be kept."""
    found = iter([3.0, 2.0, 1.0])
    settings = {
        "eval_dataset": tiny.scenes(2), "caption_metrics": lambda *_: {"x": next(found)}, "eval_strategy": "steps",
        "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "x", "learning_rate": 0.5,
    }  # fmt: skip
    first = make_trainer(tmp_path / "then", **settings, max_steps=2)
    first.train()
    best = tiny.weights(first.model)  # loaded at the end
    (tmp_path / "then").rename(tmp_path / "now")
    over = make_trainer(tmp_path / "now", **settings, max_steps=2)  # which has nothing left to do but this
    over.train(resume_from_checkpoint=True)
    assert tiny.moved(best, over.model) == set()
    again = make_trainer(tmp_path / "now", **settings, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert sorted(path.name for path in (tmp_path / "now").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3"]
    assert again.state.best_model_checkpoint == str(tmp_path / "now" / "checkpoint-1")
    assert tiny.moved(best, again.model) == set()


class Losing(TrainerCallback):
    """Removes the best checkpoint as soon as it is saved."""

    def on_save(self, args, state, control, **kwargs):
        shutil.rmtree(state.best_model_checkpoint)


def test_without_its_best_checkpoint_a_run_ends_with_its_last_captioner(make_trainer, caplog):
    trainer = make_trainer(
        eval_dataset=tiny.scenes(2), caption_metrics=lambda *_: {"x": 1.0}, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="x",
    )  # fmt: skip
    trainer.add_callback(Losing())
    logging.enable_propagation()
    before = tiny.weights(trainer.model)
    try:
        trainer.train()
    finally:
        logging.disable_propagation()
    assert "run/checkpoint-1, is missing: the captioner of the last step is kept" in caplog.text
    assert tiny.moved(before, trainer.model)


def test_a_model_that_stands_there_stays_until_the_new_one_is_whole(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    trainer.save_model(str(tmp_path / "model"))
    good = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "README.md").write_text("mine")
    trainer.train()

    def no_room(folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:  # after the weights
        patch.setattr(trainer.image_processor, "save_pretrained", no_room)
        with pytest.raises(OSError, match="model could not be written: .*No space left"):
            trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == good
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").read_bytes() != good
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    assert not (tmp_path / "model" / ".unfinished").exists()
