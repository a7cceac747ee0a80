"""Alarms: what a training shows when its captions begin to please the scorer instead of people."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

logger = logging.get_logger(__name__)

IN_A_ROW = 2
"""So many looks one after the other must be out of bounds: one may be chance."""

REWARD = "reward/total/rollouts"
JUDGE = "judge/t2i_R@1"
JUDGE_FALL = 0.9
"""The share of its best R@1 under which the judge has fallen, and not only wavered."""


@dataclass(frozen=True)
class Bound:
    """One figure of the log, and how far it may go.

    Attributes:
        alarm: what is logged, as ``alarm/NAME``.
        figure: its name in the log; that of an evaluation's without ``eval_``.
        meaning: what it means that it went too far.
        least: how small it may become.
        most: how large.
        of_first: whether ``least`` is a share of its first value instead of a value.
        evaluated: whether evaluations give it, rather than training steps.
    """

    alarm: str
    figure: str
    meaning: str
    least: float = -math.inf
    most: float = math.inf
    of_first: bool = False
    evaluated: bool = False

    def watches(self, name: str) -> bool:
        """Whether a log line's figure is this one; of several evaluation datasets that of each."""
        return name.startswith("eval_") and name.endswith(f"_{self.figure}") if self.evaluated else name == self.figure

    def broken(self, name: str, value: float, first: float) -> str:
        """What is wrong with a value, given the first one that was seen; nothing: the empty string."""
        least = self.least * first if self.of_first else self.least
        share = f" ({self.least:.4g} of the {first:.4g} that it was at first)" if self.of_first else ""
        if value < least:
            return f"{name} is {value:.4g}, under {least:.4g}{share}: {self.meaning}"
        return f"{name} is {value:.4g}, over {self.most:.4g}: {self.meaning}" if value > self.most else ""


def bounds(cider_floor: float) -> list[Bound]:
    """What is watched; figures that a training does not log raise nothing."""
    return [
        Bound("discriminator", "discriminator/accuracy", "it knows them all, and its score helps none", most=0.95),
        Bound("kl", "kl", "the captioner has run away from what it was taught", most=3.0),
        Bound("endings", "ended", "captions are cut off instead of ended", least=0.8, of_first=True),
        Bound("endings", "bad_endings", "captions break off", most=0.2, evaluated=True),
        Bound("repetitions", "repeated", "captions repeat themselves", most=0.25),
        Bound("unique", "unique", "the captioner says the same of everything", least=0.5, of_first=True),
        Bound("unique", "unique", "one caption for many pictures", least=0.5, of_first=True, evaluated=True),
        Bound("vocabulary", "vocabulary", "words are being forgotten", least=0.5, of_first=True, evaluated=True),
        Bound("cider", "CIDEr-D", "this is not how people write", least=cider_floor, of_first=True, evaluated=True),
    ]  # fmt: skip


class AlarmCallback(TrainerCallback):
    """Watches what is logged, warns, and stops the training if it was asked to.

    An alarm is raised when a figure is out of its bounds `IN_A_ROW` times. Beside the `bounds` there is ``hacking``:
    the judge's R@1 has fallen under `JUDGE_FALL` of its best, while the reward is higher than it was at first. First
    values of evaluations are best taken before the first step (``eval_on_start``). A training is stopped at an
    evaluation, so that its best checkpoint is known.

    Args:
        mode: ``warn``, ``stop`` or ``off``.
        cider_floor: the share of its first value that CIDEr-D may fall to.

    Attributes:
        told: a sentence for each alarm that was raised, in order.
        stopped: whether the training was stopped.
    """

    def __init__(self, mode: str = "warn", cider_floor: float = 0.75) -> None:
        self.mode = mode
        self.bounds = bounds(cider_floor)
        self._training = False
        self.reset()

    def reset(self) -> None:
        """Know nothing of an earlier training."""
        self.told: list[str] = []
        self.stopped = False
        self._first: dict[str, float] = {}
        self._counts: dict[str, int] = {}  # looks in a row that were out of bounds, by alarm and figure
        self._best: dict[str, float] = {}  # the judge's best R@1, by figure
        self._rewards: list[float] = []  # the first and the newest

    @property
    def ringing(self) -> bool:
        """Whether an alarm stands that has not been lifted."""
        return any(count >= IN_A_ROW for count in self._counts.values())

    def watch(self, logs: dict[str, float], step: int) -> dict[str, float]:
        """Look at a log line.

        Args:
            logs: its figures by name.
            step: the training's.

        Returns:
            ``{"alarm/NAME": 1.0}`` of each alarm that its figures raise or keep up; outside of a training none.
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
            f"{self._rewards[-1]:.4g}: the scorer likes what the judge does not"
        )

    def _count(self, alarm: str, figure: str, why: str, step: int) -> dict[str, float]:
        place = f"{alarm} {figure}"
        self._counts[place] = self._counts.get(place, 0) + 1 if why else 0
        if self._counts[place] == IN_A_ROW:
            self.told.append(f"step {step}, alarm/{alarm}: {why}")
            logger.warning("%s", self.told[-1])
        return {f"alarm/{alarm}": 1.0} if self._counts[place] >= IN_A_ROW else {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to look: what is evaluated outside of a training may be any data."""
        self._training = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look no more."""
        self._training = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the training if an alarm stands."""
        if self.mode == "stop" and self._training and self.ringing and not self.stopped:
            self.stopped = control.should_training_stop = True
            self.told.append(f"step {state.global_step}: stopped")
            logger.warning("step %d: the training is stopped, for an alarm stands", state.global_step)

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, loadable with ``weights_only=True``."""
        return {
            "told": list(self.told), "stopped": self.stopped, "first": dict(self._first), "counts": dict(self._counts),
            "best": dict(self._best), "rewards": list(self._rewards),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` gave; a training that was stopped goes on if this one only warns."""
        self.told, self.stopped = list(state["told"]), state["stopped"] and self.mode == "stop"
        self._first, self._counts = dict(state["first"]), dict(state["counts"])
        self._best, self._rewards = dict(state["best"]), list(state["rewards"])
