"""What a training step moves, what holds it back, and what the log says of it."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch
from transformers.utils import logging

POOLER = "encoder.pooler."  # a part of stock ViT that no captioner uses


# ------------------------------------------------------------------------------------------------ what moves


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_what_should_move_moves_and_nothing_else(make_trainer, freeze_encoder):
    trainer = make_trainer(
        freeze_encoder=freeze_encoder, max_steps=2, kl_weight=0.1, wtf_policy="constant", discriminator_weight=0.06
    )
    parts = {
        "model": trainer.model,
        "scorer": trainer.scorer.model,
        "reference": trainer.reference_model,
        "discriminator": trainer.discriminator.discriminator,
    }
    before = {name: tiny.weights(part) for name, part in parts.items()}
    trainer.train()
    after = {name: tiny.moved(before[name], part) for name, part in parts.items()}
    trained = {name for name in before["model"] if not name.startswith("encoder." if freeze_encoder else POOLER)}
    assert after["model"] == trained and len(trained) > 20
    assert after["discriminator"] == set(before["discriminator"])
    assert after["scorer"] == after["reference"] == set()
    assert trainer.discriminator.steps == 2
    assert all(parameter.grad is None for parameter in trainer.scorer.model.parameters())
    assert all(parameter.grad is None for parameter in trainer.reference_model.parameters())


def test_without_its_weight_the_discriminator_rests(make_trainer):
    trainer = make_trainer(discriminator_weight=0.0, discriminator_pretrain_steps=2, max_steps=2)
    before = tiny.weights(trainer.discriminator.discriminator)
    trainer.train()
    assert tiny.moved(before, trainer.discriminator.discriminator) == set() and trainer.discriminator.steps == 0
    assert not [name for name in trainer.state.log_history[0] if "discriminator" in name]


def test_the_reward_takes_the_discriminators_score_from_before_its_step(make_trainer):
    trainer = make_trainer(discriminator_weight=1.0, discriminator_lr=0.5, baseline="none")
    inputs, before = tiny.a_batch(trainer), copy.deepcopy(trainer.discriminator.discriminator)
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs)
    torch.manual_seed(5)
    _, texts = tiny.plain_captions(trainer, inputs, samples=2)
    images, embeds = inputs["image_embeds"].repeat_interleave(2, dim=0), trainer.scorer.encode_texts(texts)
    logs = trainer.meter.flush(trainer.accelerator)
    expected, later = (d.score(images, embeds).mean() for d in (before, trainer.discriminator.discriminator))
    assert logs["reward/discriminator/rollouts"] == pytest.approx(float(expected), abs=1e-6)
    assert logs["reward/total/rollouts"] == pytest.approx(float(expected), abs=1e-6)
    assert abs(float(expected) - float(later)) > 1e-3


def test_the_discriminator_is_pretrained_once_before_the_first_step(make_trainer):
    """Five updates (more than an epoch of three batches) and one a step; the captioner does not move meanwhile."""
    trainer = make_trainer(discriminator_pretrain_steps=5, max_steps=2, learning_rate=0.0, logging_steps=2)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert trainer.discriminator.steps == 7
    assert tiny.moved(before, trainer.model) == set()


def test_how_well_the_discriminator_learned_before_is_told(make_trainer, caplog):
    trainer = make_trainer(discriminator_pretrain_steps=60, discriminator_lr=1e-2)
    logging.enable_propagation()
    caplog.set_level("INFO", logger="hf_distinct.trainer")
    try:
        trainer.train()
    finally:
        logging.disable_propagation()
    told = trainer.state.log_history[0]
    assert told["discriminator/pretrain_steps"] == 60 and told["step"] == 0
    assert told["discriminator/pretrain_accuracy"] > 0.6
    begun, done = (line for line in caplog.messages if "discriminator" in line)
    assert begun == "Pre-training the discriminator for 60 steps (discriminator_pretrain_steps)."
    assert done.startswith("The discriminator now tells ") and done.endswith(" % of rollouts from reference captions.")


# ----------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("wtf_policy", ["clamp", "constant"])
def test_accumulating_four_batches_of_one_is_one_batch_of_four(make_trainer, tmp_path, wtf_policy):
    """Under SGD, which would show a gradient that is four times too long; Adam would not.

    The same captions by beam search. The reward is similarity, whose value does not depend on the rest of the batch:
    the contrastive one of a smaller batch has smaller pools, and must differ. The discriminator steps at every batch.
    """
    settings = {
        "rollouts": "beam", "num_beams": 2, "reward": ["similarity"], "discriminator_weight": 0.0, "max_steps": 3,
        "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.5, "wtf_policy": wtf_policy,
    }  # fmt: skip
    whole = make_trainer(tmp_path / "4x1", **settings)
    parts = make_trainer(tmp_path / "1x4", **settings, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    before = tiny.weights(whole.model)
    for trainer in (whole, parts):
        trainer.train()
    assert len(whole.step_losses) == 3 and len(parts.step_losses) == 12
    sums = [sum(parts.step_losses[i : i + 4]) for i in (0, 4, 8)]
    assert sums == pytest.approx(whole.step_losses, abs=1e-5)
    assert all(abs(loss) > 1e-3 for loss in whole.step_losses)
    torch.testing.assert_close(tiny.weights(parts.model), tiny.weights(whole.model), atol=1e-5, rtol=1e-4)
    largest = max(float((tiny.weights(whole.model)[n] - before[n]).abs().max()) for n in before)
    assert largest > 1e-3


# ---------------------------------------------------------------------------------------------------- KL


def test_kl_is_zero_at_the_first_step_and_grows_with_the_distance(make_trainer):
    trainer = make_trainer(kl_weight=0.1, max_steps=3)
    trainer.train()
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[1] > 1e-3 and kl[2] > 1e-3


def test_the_kl_term_holds_the_captioner_back(make_trainer, tmp_path):
    distances = {}
    for kl_weight in (1e-6, 5.0):
        trainer = make_trainer(tmp_path / str(kl_weight), kl_weight=kl_weight, max_steps=6, wtf_weight=0.0)
        trainer.train()
        distances[kl_weight] = trainer.state.log_history[5]["kl"]
    assert distances[5.0] < 0.7 * distances[1e-6]


# --------------------------------------------------------------------------------------------------- the log


def test_what_a_log_line_says(make_trainer):
    trainer = make_trainer(kl_weight=0.1, reward=["contrastive", "cider"], max_steps=1, num_rollouts=3)
    trainer.train()
    line = trainer.state.log_history[0]
    rewards = [f"reward/{name}" for name in ("contrastive", "cider", "discriminator", "total")]
    expected = {
        f"{name}/{whose}{what}" for name in rewards for whose in ("rollouts", "references") for what in ("", "_std")
    }
    expected |= {"discriminator/loss", "discriminator/accuracy", "kl", "length", "ended", "unique", "reference_weight"}
    expected |= {"cut_by_scorer", "loss", "loss/policy_gradient", "loss/weighted_teacher_forcing"}
    expected |= {f"time/{name}" for name in ("encode", "generate", "reward", "score", "backward", "step")}
    assert expected <= set(line)
    assert all(math.isfinite(line[name]) for name in expected)
    assert 0 <= line["ended"] <= 1 and 0 < line["unique"] <= 1 and 1 <= line["length"] <= tiny.MAX_LENGTH
    assert not [name for name in line if "greedy" in name]


def test_captions_that_the_scorer_does_not_read_to_their_end_are_counted(make_trainer):
    trainer = make_trainer(num_rollouts=3)
    inputs = tiny.a_batch(trainer)
    assert trainer.scorer.context_length == 14  # start, twelve words, end
    captions = ["a " * words for words in (1, 12, 13, 13, 20, 30, 7, 7, 7, 7, 7, 7)]
    assert trainer.appraiser.judge(inputs, captions, []).figures["cut_by_scorer"] == pytest.approx(4 / 12)


def test_rollouts_that_may_be_longer_than_the_scorer_reads_are_warned_of(make_trainer, caplog):
    make_trainer(max_new_tokens=14)
    assert "get the same reward" not in caplog.text
    make_trainer(max_new_tokens=15)
    assert "max_new_tokens=15 tokens, but the scorer" in caplog.text and "reads only 14" in caplog.text


def test_the_figures_of_a_log_line_are_those_of_the_captions(make_trainer):
    trainer = make_trainer(num_rollouts=3)
    inputs = tiny.a_batch(trainer)
    torch.manual_seed(5)
    rows, texts = tiny.plain_captions(trainer, inputs, samples=3)
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs)
    logs = trainer.meter.flush(trainer.accelerator)
    end = trainer.processing_class.eos_token_id
    assert logs["length"] == pytest.approx(sum(map(len, rows)) / len(rows))
    assert logs["ended"] == pytest.approx(sum(row[-1] == end for row in rows) / len(rows))
    assert logs["unique"] == pytest.approx(len(set(texts)) / len(texts))
    assert logs["cut_by_scorer"] == pytest.approx(sum(len(text.split()) > 12 for text in texts) / len(texts))
