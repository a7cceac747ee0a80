"""What a training sends to the Hub by each strategy, and that it can be taken up from there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from loopback_hub import TOKEN, USER, LoopbackHub, cut
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_distinct import Captioner
from hf_distinct.discriminator import Discriminator
from hf_distinct.files.checkpoints import damage
from hf_distinct.hub import transfer as pushing

NAME = f"{USER}/run"
MODEL = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
RESUMED = MODEL - {"README.md"} | {
    "complete.json", "discriminator.safetensors", "optimizer.pt", "rl_state.pt", "rng_state.pth", "scheduler.pt",
    "trainer_state.json",
}  # fmt: skip
SAVING = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 2, "hub_always_push": True}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(pushing, "WAITS", ())
    with LoopbackHub() as server:
        server.adopt(monkeypatch)
        yield server


def assert_tells_nothing(hub: LoopbackHub, folder: Path) -> None:
    """No file of the Hub holds a path of this machine or the token."""
    for repo in hub.repos.values():
        for files in repo.history.values():
            for name, content in files.items():
                assert str(folder.parent).encode() not in content and TOKEN.encode() not in content, name


def test_every_save_is_a_commit_of_model_and_card(hub, make_trainer, tmp_path):
    trainer = make_trainer(**SAVING, hub_strategy="every_save")
    trainer.train()
    repo = hub.repos[NAME]
    assert repo.commits == 2
    assert set(repo.files) == MODEL | {"training_curve.png"}  # a curve takes two steps
    saved = tmp_path / "run" / "checkpoint-2" / "model.safetensors"
    assert repo.files["model.safetensors"] == saved.read_bytes()
    card = repo.files["README.md"].decode()
    assert "R(c) = (1 - 0.06) [1 contrastive(c)] + 0.06 D(c)" in card and "| `learning_rate` | 0.01 |" in card
    assert f"scorer (fingerprint {trainer.appraiser.scorer.fingerprint})" in card
    assert_tells_nothing(hub, tmp_path)
    assert not list((tmp_path / "run").glob(".push-*"))


def test_at_the_end_there_is_one_push(hub, make_trainer, tmp_path):
    trainer = make_trainer(**SAVING, hub_strategy="end", hub_private_repo=True, hub_revision="tried")
    trainer.train()
    repo = hub.repos[NAME]
    assert repo.private and repo.commits == 0
    trainer.save_model()
    assert repo.commits == 1 and not repo.files
    assert set(repo.history[repo.branches["tried"]]) == MODEL | {"training_curve.png"}
    assert trainer.push_to_hub() == f"{hub.endpoint}/{NAME}"
    assert trainer.push_to_hub(revision="main", blocking=False).result() == f"{hub.endpoint}/{NAME}"
    assert set(repo.files) == MODEL | {"training_curve.png"} and repo.commits == 2


def test_what_was_pushed_of_another_family_captions_as_it_was_trained(hub, other_models, tmp_path):
    trainer = tiny.make_trainer(other_models, tmp_path / "run", **SAVING, hub_strategy="end")
    trainer.train()
    trainer.save_model()
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    for name, content in hub.repos[NAME].files.items():
        (pulled / name).write_bytes(content)
    dataset = tiny.scenes(4)
    assert Captioner(str(pulled), device="cpu")(list(dataset["image"]), batch_size=1) == trainer.caption(dataset)
    assert_tells_nothing(hub, tmp_path)


class Best(TrainerCallback):
    """Notes a path, as the Trainer does where it chooses the best checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        state.best_model_checkpoint = f"{args.output_dir}/checkpoint-1"


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [("checkpoint", {"last-checkpoint"}), ("all_checkpoints", {"checkpoint-1", "checkpoint-2"})],
)
def test_a_run_goes_on_exactly_from_what_was_pushed_of_a_checkpoint(hub, make_trainer, tmp_path, strategy, folders):
    trainer = make_trainer(**SAVING, hub_strategy=strategy, save_total_limit=1)
    trainer.add_callback(Best)
    trainer.train()
    repo = hub.repos[NAME]
    assert repo.commits == 2  # model and checkpoint together
    pulled = {name for name in repo.files if "/" in name}
    assert {name.split("/")[0] for name in pulled} == folders
    assert {name.split("/")[1] for name in pulled} == RESUMED
    assert_tells_nothing(hub, tmp_path)
    for name in pulled:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(repo.files[name])
    checkpoint = tmp_path / max(folders)
    assert damage(checkpoint) is None
    straight = make_trainer(tmp_path / "straight", max_steps=3)
    straight.train()
    resumed = make_trainer(tmp_path / "resumed", max_steps=3)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert len(resumed.step_losses) == 1 and resumed.step_losses[-1] == straight.step_losses[-1]
    assert not tiny.moved(tiny.weights(straight.model), resumed.model)


def test_a_push_that_fails_is_told_and_the_training_goes_on(hub, make_trainer, caplog):
    caplog.set_level(logging.WARNING)
    hub.meddle(f"POST /api/models/{NAME}/commit", cut)
    trainer = make_trainer(**SAVING, hub_strategy="every_save")
    trainer.train()
    assert trainer.state.global_step == 2
    assert hub.repos[NAME].commits == 1  # that of the second step
    assert "Training in progress, step 1 was not pushed, training continues" in caplog.text


def test_what_cannot_be_put_together_is_told_too_and_leaves_nothing(hub, make_trainer, tmp_path, caplog):
    (tmp_path / "run" / ".push-of_a_killed_run").mkdir(parents=True)
    trainer = make_trainer(**SAVING, hub_strategy="every_save")
    assert not list((tmp_path / "run").glob(".push-*"))
    trainer.image_processor = trainer.processing_class  # so that there is no image processor to send
    trainer.train()
    assert trainer.state.global_step == 2 and hub.repos[NAME].commits == 0
    assert "step 2 was not pushed, training" in caplog.text and "lacks preprocessor_config.json" in caplog.text
    assert not list((tmp_path / "run").glob(".push-*"))


def test_what_may_not_be_written_is_known_before_the_training(hub, make_trainer):
    with pytest.raises(ValueError, match="does not let this token write to 'somebody_else/run'"):
        make_trainer(**SAVING, hub_model_id="somebody_else/run")


def test_the_discriminator_is_saved_as_weights_that_load(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model()
    found = Discriminator(trainer.appraiser.scorer.embed_dim)
    found.load_state_dict(load_file(tmp_path / "run" / "discriminator.safetensors"))
    for own, loaded in zip(trainer.discriminator.discriminator.parameters(), found.parameters(), strict=True):
        assert torch.equal(own.cpu(), loaded)
