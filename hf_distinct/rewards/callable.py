"""Any function of captions as a reward."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from hf_distinct.rewards.base import Reward, RewardBatch

logger: Any = logging.get_logger(__name__)

OWN_ARGUMENTS = (
    "captions", "references", "completions", "prompts", "completion_ids", "trainer_state", "log_metric", "log_extra",
)  # fmt: skip
"""What every function may ask for, whatever the dataset. A column of the same name is not passed."""


class CallableReward:
    """A plain function ``reward(captions, references, **columns) -> list of floats`` as a reward.

    The function is called with keyword arguments. It gets those that its signature names, or all of them if it takes
    ``**kwargs``:

    - ``captions``: N strings. Rollouts, reference captions and greedy captions are rewarded in one call.
    - ``references``: N lists, all the references of each caption's image.
    - each further column of the dataset, under its name: N values. The picture is not among them.
    - the arguments of a TRL reward function: ``completions`` (the captions, as strings), ``prompts`` (empty strings),
      ``completion_ids`` (the tokens of the captions, end token included), ``trainer_state``, ``log_metric(name,
      value)`` (logged as ``reward/NAME``), and ``log_extra(column, values)``, which does nothing here: there is no
      table of completions.

    It returns one number for each caption, as a list, an array or a tensor. ``None`` means that the reward does not
    apply to this caption: it is left out of the caption's total and of the mean that is logged. A caption to which no
    reward applies has no advantage. The trainer leaves out a step with a NaN or an infinite value. The function may be
    ``async def``: all asynchronous rewards then run at the same time. Reward models of TRL are not supported.

    The value is no advantage: use it with a baseline.

    Args:
        function: the function.
        name: the name to log; by default that of the function.

    Example:
        ```python
        >>> def brevity(captions, **kwargs):
        ...     return [1 / len(caption.split()) for caption in captions]
        >>> reward = CallableReward(brevity)
        ```
    """

    is_advantage = False

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        if not callable(function):
            raise TypeError(f"a reward must be callable, got {type(function).__name__}")
        self.function = function
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.name = name or str(getattr(inner, "__name__", type(inner).__name__))
        self.__doc__ = inspect.getdoc(inner)
        # None: the function takes whatever it is given
        self._parameters: set[str] | None = None
        self._required: set[str] = set()
        self._positional: list[str] = []
        self._read_signature()

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,) float32, NaN where the reward does not apply.

        Raises:
            ValueError: if the function needs an argument that is no column, or if what it gives is not one number for
                each caption; the message names the reward, the row and the caption.
            RuntimeError: if the function fails; its own error is the cause.
        """
        values, applies = self.begin(batch)()
        return values.masked_fill(~applies.to(values.device), math.nan)

    def begin(self, batch: RewardBatch) -> Callable[[], tuple[Tensor, Tensor]]:
        """Call the function, and return what waits for its result: the values and where they apply, (N,) each.

        See `__call__` for what both raise. Values are 0 where the reward does not apply. Where it applies is on the
        CPU, so that the host can look at it without waiting for a GPU.
        """
        for problem in self.problems(batch.columns):
            raise ValueError(problem)
        arguments = self._arguments(batch)
        with _named(self.name):
            result = self.function(**arguments)
        waiting = asyncio.run_coroutine_threadsafe(_awaited(result), _loop()) if inspect.isawaitable(result) else None

        def finish() -> tuple[Tensor, Tensor]:
            values = result
            if waiting is not None:
                with _named(self.name):
                    values = waiting.result()
            numbers = _as_floats(values, batch.captions, self.name)
            floats = torch.tensor([number or 0.0 for number in numbers], dtype=torch.float32)
            applies = torch.tensor([number is not None for number in numbers], dtype=torch.bool)
            return floats.to(batch.text_embeds.device), applies

        return finish

    def takes(self, argument: str) -> bool:
        """Whether the function is given this argument."""
        return self._parameters is None or argument in self._parameters

    def problems(self, columns: Iterable[str]) -> Iterator[str]:
        """Say which arguments the function needs that neither the dataset nor we can give, or not by their names.

        Args:
            columns: names of the dataset's further columns.
        """
        if self._positional:
            yield (
                f"reward {self.name!r} is called with keyword arguments, and its {', '.join(self._positional)} takes "
                "none: take the / out of its parameters."
            )
        columns = sorted(columns)
        if missing := sorted(self._required - {*columns, *OWN_ARGUMENTS}):
            yield (
                f"reward {self.name!r} needs {', '.join(map(repr, missing))}, which is no column of the dataset that "
                f"rewards can read; these are {', '.join(columns) or 'none'}. The function may also ask for "
                f"{', '.join(OWN_ARGUMENTS)}. Add the column to the dataset, or give the parameter a default."
            )

    def _read_signature(self) -> None:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some functions written in C tell nothing about themselves
            return
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self._positional = [p.name for p in named if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
        self._required = {p.name for p in named if p.default is p.empty} - {*self._positional}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            self._parameters = {p.name for p in named}

    def _arguments(self, batch: RewardBatch) -> dict[str, Any]:
        available: dict[str, Any] = {
            **batch.columns,
            "captions": batch.captions,
            "references": batch.references,
            "completions": batch.captions,
            "prompts": [""] * len(batch),
            "completion_ids": batch.completion_ids,
            "trainer_state": batch.trainer_state,
            "log_metric": lambda name, value: batch.metrics.setdefault(name, []).append(float(value)),
            "log_extra": self._say_that_nothing_is_kept,
        }
        return {name: value for name, value in available.items() if self.takes(name)}

    def _say_that_nothing_is_kept(self, column: str, values: Sequence[Any]) -> None:
        logger.warning_once(f"reward {self.name!r}: log_extra({column!r}) keeps nothing; log_metric logs numbers.")


def evaluate_rewards(rewards: Sequence[Reward], batch: RewardBatch) -> list[tuple[Tensor, Tensor]]:
    """Call rewards with one batch, the asynchronous ones at the same time.

    Returns:
        For each reward its values, 0 where it does not apply, and where it applies, on the CPU: (N,) each.

    Raises:
        ValueError: a reward does not give N values.
        RuntimeError: a reward fails; its own error is the cause.
    """
    return [finish() for finish in [_begin(reward, batch) for reward in rewards]]


def _begin(reward: Reward, batch: RewardBatch) -> Callable[[], tuple[Tensor, Tensor]]:
    if isinstance(reward, CallableReward):
        return reward.begin(batch)
    with _named(reward.name):
        values = reward(batch)
    if not isinstance(values, Tensor) or values.shape != (len(batch),):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"reward {reward.name!r} gave {found} instead of a tensor of {len(batch)} numbers, one a caption"
        )
    return lambda: (values, torch.ones(len(batch), dtype=torch.bool))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which reward an error comes from; the error itself, with its traceback, is the cause."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error


async def _awaited(result: Any) -> Any:
    return await result


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all steps: clients that a reward keeps between calls belong to the loop they were made in."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def _as_floats(values: Any, captions: Sequence[str], name: str) -> list[float | None]:
    """One float for each caption, None where there is none, or an error that names reward, row and caption."""
    if hasattr(values, "tolist"):  # an array or a tensor, on whatever device
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"reward {name!r} gave {type(values).__name__} instead of a list of {len(captions)} numbers")
    if len(values) != len(captions):
        # beyond the shorter of the two lists, the first caption without a value or the first value without a caption
        row = min(len(values), len(captions))
        what = f"row {row} (caption {captions[row]!r}) got none" if row < len(captions) else "the rest belong to none"
        raise ValueError(f"reward {name!r} gave {len(values)} values for {len(captions)} captions: {what}")
    return [_as_float(value, row, captions[row], name) for row, value in enumerate(values)]


def _as_float(value: Any, row: int, caption: str, name: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (str, bytes)):
        try:
            return float(value)
        except OverflowError:  # an integer beyond all floats
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise ValueError(
        f"reward {name!r} gave {value!r} for row {row}, caption {caption!r}; "
        "each caption needs one number (or None where the reward does not apply)"
    )
