"""What the log says of a training step: figures, and the rollouts with what they earned."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from hf_distinct import CallableReward

pytestmark = pytest.mark.both_ends


def short_ones(captions, **columns):
    return [1.0 if len(caption.split()) < 4 else None for caption in captions]


def test_rows_hold_what_the_last_step_wrote_and_earned(make_trainer):
    trainer = make_trainer(
        log_completions=True, num_rollouts=3, discriminator_weight=0.0,
        rewards=["similarity", CallableReward(short_ones)], reward_weights=[1.0, 0.5],
    )  # fmt: skip
    inputs = tiny.a_batch(trainer)
    torch.manual_seed(5)
    _, texts = tiny.plain_captions(trainer, inputs, samples=3)
    torch.manual_seed(5)
    trainer.compute_loss(trainer.model, inputs)
    rows = trainer.step_log.completions()
    names = ["image_id", "reference", "rollout", "reward/similarity", "reward/short_ones", "reward/total", "advantage"]
    assert {tuple(row) for row in rows} == {tuple(names)}
    assert [row["rollout"] for row in rows] == texts
    places = [place for place in range(4) for _ in range(3)]
    assert [row["image_id"] for row in rows] == [inputs["columns"]["image_id"][place] for place in places]
    assert [row["reference"] for row in rows] == [inputs["captions"][place][0] for place in places]
    cosines = (trainer.scorer.encode_texts(texts) * inputs["image_embeds"][places]).sum(dim=1)
    short = [row["reward/short_ones"] for row in rows]
    assert short == short_ones(texts) and {1.0, None} == set(short)
    totals = cosines + 0.5 * torch.tensor([each or 0.0 for each in short])
    means = (totals.view(4, 3).sum(dim=1, keepdim=True) - totals.view(4, 3)) / 2
    for name, expected in (
        ("reward/similarity", cosines), ("reward/total", totals), ("advantage", (totals.view(4, 3) - means).flatten()),
    ):  # fmt: skip
        assert [row[name] for row in rows] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_reward_adds_columns(make_trainer, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")

    def count(completions, log_extra):
        words = [len(text.split()) for text in completions]
        log_extra("words", words)
        log_extra("verdict", [None if few < 5 else ["long"] for few in words])
        return [float(few) for few in words]

    trainer = make_trainer(log_completions=True, rewards=[count], temperature=2.0)
    trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
    rows = trainer.step_log.completions()
    assert [row["extra/words"] for row in rows] == [len(row["rollout"].split()) for row in rows]
    verdicts = [row["extra/verdict"] for row in rows]
    assert verdicts == [None if row["extra/words"] < 5 else "['long']" for row in rows] and {None, "['long']"} == {
        *verdicts
    }
    trainer.step_log.flush(trainer.state)
    assert " words" in (shown := capsys.readouterr().out) and "['long']" in shown


def test_a_log_line_shows_what_the_last_step_wrote_and_earned(make_trainer, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    trainer = make_trainer(log_completions=True, max_steps=4, logging_steps=2)
    shown, completions = [], trainer.step_log.completions
    trainer.step_log.completions = lambda: shown.append(completions()) or shown[-1]
    trainer.train()
    lines = capsys.readouterr().out.splitlines()
    steps = [place for place, line in enumerate(lines) if line.strip() in ("Step 2", "Step 4")]
    logs = [place for place, line in enumerate(lines) if line.startswith("{'loss'")]
    assert steps[0] < logs[0] < steps[1] < logs[1]
    for begin, end, rows in zip(steps, logs, shown, strict=True):
        table = " ".join(" ".join(lines[begin:end]).split())
        assert len(rows) == 8 and rows[0]["rollout"]
        for row in rows:
            advantage = f"{row['advantage']:.3f}"
            assert f"{row['image_id']} {row['reference']} {row['rollout']}" in table and advantage in table


def test_only_so_many_completions_are_printed(make_trainer, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    trainer = make_trainer(log_completions=True, num_completions_to_print=4, logging_steps=1)
    trainer.train()
    assert capsys.readouterr().out.count(" train-0-") == 4  # one of each image


def test_nothing_is_kept_or_shown_unless_it_is_asked_for(make_trainer, capsys):
    trainer = make_trainer()
    trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
    assert trainer.step_log.completions() == []
    trainer.train()
    assert "Step 1" not in capsys.readouterr().out


def test_a_number_of_completions_does_nothing_without_them(make_trainer, caplog):
    make_trainer(num_completions_to_print=4)
    assert "num_completions_to_print=4 has no effect with log_completions=False." in caplog.text


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
