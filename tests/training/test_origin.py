"""A run that is resumed with something else: refused where its state would be wrong, else told what that means."""

from __future__ import annotations

import json
import logging
import shutil

import open_clip
import pytest
import tiny
import torch
from transformers.utils import logging as transformers_logging

from hf_distinct.scorer import save_open_clip
from hf_distinct.training.origin import differences, origin_of, refusals

pytestmark = pytest.mark.both_ends
SAVING = {"save_strategy": "steps", "save_steps": 1, "memory_batches": 1}


@pytest.fixture
def said(caplog):
    """What hf_distinct warns of."""
    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    yield caplog
    transformers_logging.disable_propagation()


@pytest.fixture
def other_scorer(tiny_models, tmp_path):
    """The tiny models with another CLIP."""
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    config = json.loads((models / "scorer" / "open_clip_config.json").read_text())
    torch.manual_seed(5)
    clip = open_clip.CLIP(**config["model_cfg"])
    save_open_clip(clip, models / "scorer", config["model_cfg"], config["preprocess_cfg"])
    return models


def test_resumed_with_the_same_nothing_is_said(make_trainer, said):
    make_trainer(**SAVING).train()
    said.clear()
    resumed = make_trainer(**SAVING, max_steps=2, log_completions=True)
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.step_losses) == 1 and "is resumed" not in said.text


def test_another_scorer_is_refused_where_the_state_holds_its_embeddings(make_trainer, other_scorer, tmp_path, said):
    first = make_trainer(**SAVING)
    first.train()
    second = tiny.make_trainer(other_scorer, tmp_path / "run", max_steps=2, **SAVING)
    fingerprints = first.scorer.fingerprint, second.scorer.fingerprint
    message = (
        rf"checkpoint-1 cannot be resumed: it was written with the scorer of fingerprint {fingerprints[0]}, but the "
        rf"scorer is {fingerprints[1]} now.*--model_name_or_path .*checkpoint-1"
    )
    with pytest.raises(ValueError, match=message):
        second.train(resume_from_checkpoint=True)
    bare = {**SAVING, "memory_batches": 0, "discriminator_weight": 0.0}
    tiny.make_trainer(other_scorer, tmp_path / "run", max_steps=2, **bare).train(resume_from_checkpoint=True)
    assert f"(scorer {fingerprints[0]}) and are 1 contrastive (scorer {fingerprints[1]}) now" in said.text


def test_another_dataset_is_told(make_trainer, said):
    make_trainer(**SAVING).train()
    make_trainer(**SAVING, max_steps=2, dataset=tiny.scenes(8)).train(resume_from_checkpoint=True)
    assert "its training dataset was different (12 images, and 8 images now)" in said.text


def test_other_rewards_are_told_and_the_alarms_forget_theirs(make_trainer, said):
    first = make_trainer(**SAVING)
    first.train()
    assert first.alarms.state_dict()["rewards"]
    same = make_trainer(**SAVING, max_steps=2)
    same.train(resume_from_checkpoint=True)
    assert len(same.alarms.state_dict()["rewards"]) == 2  # the first and the newest
    other = make_trainer(**SAVING, max_steps=3, reward=["similarity"], baseline="none", reward_weights=[0.5])
    other.train(resume_from_checkpoint=True)
    assert len(other.alarms.state_dict()["rewards"]) == 1
    assert "its rewards were 1 contrastive (scorer" in said.text and "and are 0.5 similarity (scorer" in said.text


def test_what_stays_in_the_optimisers_is_told(make_trainer, said):
    """The state that is loaded holds the old values: no new one acts."""
    make_trainer(**SAVING).train()
    resumed = make_trainer(**SAVING, max_steps=2, learning_rate=0.5, discriminator_lr=0.5, num_rollouts=3)
    resumed.train(resume_from_checkpoint=True)
    assert "learning_rate stays 0.01, not 0.5" in said.text and resumed.optimizer.param_groups[0]["lr"] == 0.01
    assert "discriminator_lr stays 7e-05, not 0.5" in said.text
    assert resumed.discriminator.optimizer.param_groups[0]["lr"] == 7e-5
    assert "these settings were changed, and take effect from now on: num_rollouts 2 -> 3" in said.text


@pytest.mark.parametrize("change", [{"optim": "sgd"}, {"freeze_encoder": True}], ids=str)
def test_an_optimiser_of_another_form_is_refused(make_trainer, change):
    make_trainer(**SAVING).train()
    with pytest.raises(ValueError, match=f"{next(iter(change))} was .* the optimiser's state has another form"):
        make_trainer(**SAVING, max_steps=2, **change).train(resume_from_checkpoint=True)


def test_kl_from_another_captioner_is_refused(make_trainer):
    make_trainer(**SAVING, kl_weight=0.1).train()

    def change(model):
        torch.nn.init.zeros_(model.decoder.transformer.ln_f.bias)
        return model

    make_trainer(**SAVING, kl_weight=0.1, max_steps=2).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="kl_weight measures the divergence from the captioner before training"):
        make_trainer(**SAVING, kl_weight=0.1, max_steps=3, adapt=change).train(resume_from_checkpoint=True)


def test_rows_are_known_by_their_ids_and_numbers_of_captions(make_trainer):
    args, dataset = make_trainer().args, tiny.scenes(3)
    fewer = dataset.map(lambda row: {"captions": row["captions"][:2]})

    def origin(rows):
        return origin_of(args, scorer="s", dataset=rows, rewards=["a"], reward_weights=[1], reference_model=None)

    for other in (dataset.select([0, 1]), dataset.select([1, 0, 2]), fewer):
        assert len(list(differences(origin(dataset), origin(other)))) == 1
        assert list(refusals(origin(dataset), origin(other))) == []
    assert list(differences(origin(dataset), origin(tiny.scenes(3)))) == []
