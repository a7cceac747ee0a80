"""What the log says of a training step."""

from __future__ import annotations

import math

import pytest
import tiny
import torch


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
    assert not [name for name in line if "greedy" in name]


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
    assert trainer.step_log.samples == [(texts[3 * i], inputs["captions"][i][0]) for i in range(4)]
