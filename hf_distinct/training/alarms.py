"""Alarms that report when captions begin to please the scorer instead of people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)

IN_A_ROW = 2
"""An alarm needs this many consecutive values out of bounds; a single one may be chance."""

REWARD = "reward/total/rollouts"
JUDGE = "judge/t2i_R@1"
JUDGE_FALL = 0.9
"""The judge's R@1 counts as fallen below this fraction of its best value."""


@dataclass(frozen=True)
class Bound:
    """A logged metric and its bounds.

    Attributes:
        alarm: name of the alarm, logged as ``alarm/NAME``.
        figure: name of the metric in the log; for evaluations without ``eval_``.
        meaning: what a value out of bounds means.
        least: lower bound.
        most: upper bound.
        of_first: whether ``least`` is a fraction of the metric's first value.
        evaluated: whether evaluations log the metric, rather than training steps.
    """

    alarm: str
    figure: str
    meaning: str
    least: float = -math.inf
    most: float = math.inf
    of_first: bool = False
    evaluated: bool = False

    def watches(self, name: str) -> bool:
        """Whether a logged metric is this one, on any of the evaluation datasets."""
        return name.startswith("eval_") and name.endswith(f"_{self.figure}") if self.evaluated else name == self.figure

    def broken(self, name: str, value: float, first: float) -> str:
        """Return what is wrong with a value, given the first value; an empty string if nothing is wrong."""
        least = self.least * first if self.of_first else self.least
        share = f" ({self.least:.4g} of its first value {first:.4g})" if self.of_first else ""
        if value < least:
            return f"{name} is {value:.4g}, below {least:.4g}{share}: {self.meaning}"
        return f"{name} is {value:.4g}, above {self.most:.4g}: {self.meaning}" if value > self.most else ""


def bounds(cider_floor: float) -> list[Bound]:
    """Return the bounds of all watched metrics; metrics that are not logged raise no alarm."""
    return [
        Bound("discriminator", "discriminator/accuracy", "it knows all rollouts, so its score is useless", most=0.95),
        Bound("kl", "kl", "the captioner has moved far from its start", most=3.0),
        Bound("endings", "ended", "captions are truncated instead of ended", least=0.8, of_first=True),
        Bound("endings", "bad_endings", "captions stop in mid-phrase", most=0.2, evaluated=True),
        Bound("repetitions", "repeated", "captions repeat themselves", most=0.25),
        Bound("unique", "unique", "the captioner writes the same caption for many images", least=0.5, of_first=True),
        Bound("unique", "unique", "one caption for many images", least=0.5, of_first=True, evaluated=True),
        Bound("vocabulary", "vocabulary", "words are being forgotten", least=0.5, of_first=True, evaluated=True),
        Bound("cider", "CIDEr-D", "people do not write like this", least=cider_floor, of_first=True, evaluated=True),
    ]  # fmt: skip


class AlarmCallback(TrainerCallback):
    """Watches the log, warns, and stops the training if requested.

    An alarm is raised when a metric is out of its `bounds` `IN_A_ROW` times in a row. In addition there is
    ``hacking``: the judge's R@1 has fallen below `JUDGE_FALL` of its best, while the reward is higher than at first.
    First values of evaluations are best measured before training (``eval_on_start``). Training is only stopped at an
    evaluation, so that its best checkpoint is known.

    Args:
        mode: ``warn``, ``stop`` or ``off``.
        cider_floor: lower bound of CIDEr-D, as a fraction of its first value.

    Attributes:
        told: a sentence for each alarm raised, in order.
        stopped: whether the training was stopped.
    """

    def __init__(self, mode: str = "warn", cider_floor: float = 0.75) -> None:
        self.mode = mode
        self.bounds = bounds(cider_floor)
        self._training = False
        self.reset()

    def reset(self) -> None:
        """Forget an earlier training."""
        self.told: list[str] = []
        self.stopped = False
        self._first: dict[str, float] = {}
        self._counts: dict[str, int] = {}  # consecutive values out of bounds, by alarm and metric
        self._best: dict[str, float] = {}  # the judge's best R@1, by figure
        self._rewards: list[float] = []  # the first and the newest

    @property
    def ringing(self) -> bool:
        """Whether an alarm is active."""
        return any(count >= IN_A_ROW for count in self._counts.values())

    def watch(self, logs: dict[str, float], step: int) -> dict[str, float]:
        """Check a log line.

        Args:
            logs: its values by name.
            step: the training step.

        Returns:
            ``{"alarm/NAME": 1.0}`` for each alarm that is active after these values; empty outside of training.
        """
        if self.mode == "off" or not self._training:
            return {}
        raised: dict[str, float] = {}
        if REWARD in logs:
            self._rewards = [*self._rewards[:1], logs[REWARD]]
        for name, value in logs.items():
            for bound in self.bounds:
                if bound.watches(name) and not math.isnan(value):
                    first = self._first.setdefault(name, value)
                    raised |= self._count(bound.alarm, name, bound.broken(name, value, first), step)
            if name.startswith("eval_") and name.endswith(f"_{JUDGE}"):
                raised |= self._count("hacking", name, self._hacking(name, value), step)
        return raised

    def _hacking(self, name: str, judge: float) -> str:
        best = self._best[name] = max(judge, self._best.get(name, judge))
        if judge >= JUDGE_FALL * best or not self._rewards or self._rewards[-1] <= self._rewards[0]:
            return ""
        return (
            f"{name} is {judge:.4g}, and was {best:.4g}, while {REWARD} has risen from {self._rewards[0]:.4g} to "
            f"{self._rewards[-1]:.4g}: the scorer prefers what the judge does not"
        )

    def _count(self, alarm: str, figure: str, why: str, step: int) -> dict[str, float]:
        place = f"{alarm} {figure}"
        self._counts[place] = self._counts.get(place, 0) + 1 if why else 0
        if self._counts[place] == IN_A_ROW:
            self.told.append(f"step {step}, alarm/{alarm}: {why}")
            logger.warning("%s", self.told[-1])
        return {f"alarm/{alarm}": 1.0} if self._counts[place] >= IN_A_ROW else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start watching; evaluations outside of training may use any data."""
        self._training = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching."""
        self._training = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the training if an alarm is active."""
        if self.mode == "stop" and self._training and self.ringing and not self.stopped:
            self.stopped = control.should_training_stop = True
            self.told.append(f"step {state.global_step}: stopped")
            logger.warning("step %d: training is stopped, because an alarm is active", state.global_step)

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers and strings, loadable with ``weights_only=True``."""
        return {
            "told": list(self.told), "stopped": self.stopped, "first": dict(self._first), "counts": dict(self._counts),
            "best": dict(self._best), "rewards": list(self._rewards),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state from `state_dict`; a stopped training continues if this one only warns."""
        self.told, self.stopped = list(state["told"]), state["stopped"] and self.mode == "stop"
        self._first, self._counts = dict(state["first"]), dict(state["counts"])
        self._best, self._rewards = dict(state["best"]), list(state["rewards"])
