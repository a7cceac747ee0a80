"""Alarms: by hand-worked logs, and in trainings that really go wrong."""

from __future__ import annotations

import math

import pytest
import tiny

from hf_distinct.evaluation import caption_metrics
from hf_distinct.training.alarms import AlarmCallback


class Control:
    should_training_stop = False


class State:
    global_step = 7


def begun(**settings) -> AlarmCallback:
    alarms = AlarmCallback(**settings)
    alarms.on_train_begin(None, None, None)
    return alarms


def rings(alarms: AlarmCallback, figure: str, *values: float) -> list[str]:
    """The alarms that each value raises, as ``+`` for one and ``.`` for none."""
    return ["+" if alarms.watch({figure: value}, step) else "." for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("alarm", "figure", "values", "expected"),
    [
        # Twice in a row, as long as it lasts; one that lies on the bound is within it. Most are shares of the first.
        ("discriminator", "discriminator/accuracy", (0.96, 0.5, 0.96, 0.95, 0.96, 0.97, 1.0, 0.9), ".....++."),
        ("kl", "kl", (2.9, 3.1, 3.0, 4.0, 5.0), "....+"),
        ("endings", "ended", (1.0, 0.79, 0.8, 0.79, 0.2), "....+"),
        ("repetitions", "repeated", (0.0, 0.3, 0.25, 0.3, 0.26), "....+"),
        ("endings", "eval_bad_endings", (0.0, 0.3, 0.2, 0.3, 0.3), "....+"),
        ("unique", "unique", (0.9, 0.44, 0.45, 0.44, 0.3), "....+"),
        ("unique", "eval_unique", (0.4, 0.19, 0.2, 0.19, 0.1), "....+"),
        ("vocabulary", "eval_vocabulary", (100, 49, 50, 49, 49), "....+"),
        ("vocabulary", "eval_twins_vocabulary", (100, 49, 49), "..+"),
        ("cider", "eval_CIDEr-D", (2.0, 3.0, 1.4, 1.5, 1.4, 1.3), ".....+"),  # 0.75 of the first, whatever the best
        # What cannot be judged is passed over; what is not measured, or named otherwise, raises nothing.
        ("cider", "eval_CIDEr-D", (math.nan, 2.0, 1.0, math.nan, 1.0), "....+"),
        ("", "CIDEr-D", (2.0, 0.0, 0.0, 0.0), "...."),
        ("", "vocabulary", (100, 0, 0, 0), "...."),
        ("", "eval_kl", (9.0, 9.0, 9.0), "..."),
    ],
)
def test_a_figure_out_of_its_bounds_twice_in_a_row_raises_an_alarm(alarm, figure, values, expected):
    alarms = begun()
    assert "".join(rings(alarms, figure, *values)) == expected
    last = {figure: values[-1]}
    assert set(alarms.watch(last, 9)) == ({f"alarm/{alarm}"} if expected.endswith("+") else set())


def test_a_warning_tells_both_numbers_once(caplog):
    alarms = begun(cider_floor=0.5)
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        rings(alarms, "eval_CIDEr-D", 3.0, 1.25, 1.25, 1.25)
        rings(alarms, "discriminator/accuracy", 0.99, 0.98)
    finally:
        logging.disable_propagation()
    assert alarms.told == [
        "step 2, alarm/cider: eval_CIDEr-D is 1.25, below 1.5 (0.5 of its first value 3): people do not write "
        "like this",
        "step 1, alarm/discriminator: discriminator/accuracy is 0.98, above 0.95: it knows all rollouts, so its "
        "score is useless",
    ]
    assert [record.getMessage() for record in caplog.records] == alarms.told


@pytest.mark.parametrize(
    ("rewards", "judged", "expected"),
    [
        # The best is 0.8, of which 0.72 is nine tenths.
        ((None, 1, 2, 3, 3, 3), (0.7, 0.75, 0.8, 0.71, 0.73, 0.71), "......"),
        ((None, 2, 3, 4, 3, 3), (0.7, 0.75, 0.8, 0.71, 0.71, 0.60), "....++"),
        # The reward has fallen, too: a bad training, but nothing that the scorer likes.
        ((None, 2, 3, 2, 1, 2), (0.7, 0.75, 0.8, 0.6, 0.5, 0.4), "......"),
        # The start is better than all that follows.
        ((None, 1, 2, 3), (0.9, 0.5, 0.4, 0.3), "...+"),
    ],
)
def test_the_reward_rises_while_the_judge_falls(rewards, judged, expected):
    alarms, found = begun(), ""
    for step, (reward, judge) in enumerate(zip(rewards, judged, strict=True)):
        if reward is not None:
            alarms.watch({"loss": 1.0, "reward/total/rollouts": reward}, step)
        found += "+" if alarms.watch({"eval_judge/t2i_R@1": judge}, step) == {"alarm/hacking": 1.0} else "."
    assert found == expected
    if found == "....++":
        assert (
            "eval_judge/t2i_R@1 is 0.71, and was 0.8, while reward/total/rollouts has risen from 2 to 3"
            in alarms.told[0]
        )


def test_a_training_that_is_taken_up_remembers():
    whole, first = begun(), begun()
    lines = [{"reward/total/rollouts": r, "eval_judge/t2i_R@1": j, "eval_unique": u}
             for r, j, u in ((1, 0.5, 0.9), (2, 0.6, 0.9), (3, 0.5, 0.4), (3, 0.5, 0.3), (3, 0.5, 0.9))]  # fmt: skip
    expected = [whole.watch(line, step) for step, line in enumerate(lines)]
    assert expected[3:] == [{"alarm/hacking": 1.0, "alarm/unique": 1.0}, {"alarm/hacking": 1.0}]
    for stop in range(1, 5):
        first = begun()
        found = [first.watch(line, step) for step, line in enumerate(lines[:stop])]
        again = begun()
        again.load_state_dict(first.state_dict())
        found += [again.watch(line, step) for step, line in enumerate(lines[stop:], start=stop)]
        assert found == expected and again.told == whole.told


def test_who_only_warns_stops_nothing_and_who_is_off_says_nothing():
    for mode, stops in (("warn", False), ("stop", True), ("off", False)):
        alarms, control = begun(mode=mode), Control()
        alarms.on_evaluate(None, State, control)
        assert not control.should_training_stop
        assert rings(alarms, "kl", 4.0, 4.0)[-1] == ("." if mode == "off" else "+")
        alarms.on_evaluate(None, State, control)
        assert control.should_training_stop is alarms.stopped is stops
        assert len(alarms.told) == {"warn": 1, "stop": 2, "off": 0}[mode]
    # What was stopped goes on under somebody who only warns.
    again = begun(mode="warn")
    stopped = begun(mode="stop")
    rings(stopped, "kl", 4.0, 4.0)
    stopped.on_evaluate(None, State, Control())
    again.load_state_dict(stopped.state_dict())
    assert stopped.stopped and not again.stopped


def test_evaluations_outside_of_a_training_are_not_watched():
    alarms, control = AlarmCallback("stop"), Control()
    assert rings(alarms, "eval_CIDEr-D", 3.0, 0.0, 0.0) == [".", ".", "."]
    alarms.on_train_begin(None, None, None)
    assert rings(alarms, "kl", 4.0, 4.0) == [".", "+"]
    alarms.on_train_end(None, None, None)
    alarms.on_evaluate(None, State, control)
    assert not control.should_training_stop and len(alarms.told) == 1


# -------------------------------------------------------------------------------------------------- real trainings

HACKED = {
    "max_steps": 12, "learning_rate": 0.003, "reward": ["similarity"], "wtf_weight": 0.0, "discriminator_weight": 0.0,
    "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "save_strategy": "steps", "save_steps": 1,
    "load_best_model_at_end": True, "metric_for_best_model": "CIDEr-D", "alarms": "stop",
    "caption_metrics": lambda captions, data: caption_metrics(captions, data["captions"]),
}  # fmt: skip


@pytest.mark.both_ends
def test_a_hacked_training_stops_at_its_best_checkpoint_and_so_does_one_that_is_taken_up(make_trainer, tmp_path):
    dataset = tiny.scenes()
    trainer = make_trainer(eval_dataset=dataset, **HACKED)
    trainer.train()
    steps = len(trainer.step_losses)
    assert 2 < steps < 12 and trainer.alarms.stopped
    assert trainer.alarms.told[-1] == f"step {steps}: stopped"
    evaluated = {line["step"]: line for line in trainer.state.log_history if "eval_CIDEr-D" in line}
    assert set(evaluated) == set(range(steps + 1))
    assert any(name.startswith("alarm/") for name in evaluated[steps])
    best = max(list(evaluated)[1:], key=lambda step: evaluated[step]["eval_CIDEr-D"])
    assert best < steps and trainer.state.best_global_step == best
    now = caption_metrics(trainer.caption(dataset), dataset["captions"])
    assert now["CIDEr-D"] == evaluated[best]["eval_CIDEr-D"] > evaluated[steps]["eval_CIDEr-D"]

    trainer.write_card(tmp_path)
    assert f"- {trainer.alarms.told[0]}" in (tmp_path / "README.md").read_text()

    for stop in (steps - 1, steps):  # before the last evaluation, and killed between it and the end
        again = make_trainer(tmp_path / "again", eval_dataset=dataset, **HACKED)
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
        assert getattr(again, "step_losses", []) == trainer.step_losses[stop:]
        assert again.alarms.told == trainer.alarms.told
        assert tiny.moved(tiny.weights(trainer.model), again.model) == set()


@pytest.mark.both_ends
@pytest.mark.parametrize("save_strategy", ["steps", "best"])
@pytest.mark.parametrize(
    ("metric", "best"), [("judge/t2i_R@1", 2), ("judge/t2i_median_rank", 3), ("eval_scorer/t2i_median_rank", 1)]
)
def test_the_best_checkpoint_of_any_metric_is_restored(make_trainer, save_strategy, metric, best):
    """Of three steps; R@1 is best where it is highest, a rank where it is lowest, the last of equals never."""
    lines = iter([(0.1, 5.0, 1.0), (0.9, 6.0, 1.0), (0.2, 4.0, 2.0)])
    names = ("judge/t2i_R@1", "judge/t2i_median_rank", "scorer/t2i_median_rank")
    seen = []

    def measured(captions, data):
        seen.append(tiny.weights(trainer.model))
        return dict(zip(names, next(lines), strict=True))

    trainer = make_trainer(
        max_steps=3, caption_metrics=measured, eval_dataset=tiny.scenes(2), eval_strategy="steps", eval_steps=1,
        save_strategy=save_strategy, save_steps=1, load_best_model_at_end=True, metric_for_best_model=metric,
    )  # fmt: skip
    trainer.train()
    assert len(seen) == 3
    assert [not tiny.moved(weights, trainer.model) for weights in seen] == [step == best for step in (1, 2, 3)]
    assert trainer.state.best_global_step == best
