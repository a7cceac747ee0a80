"""Use any function of captions as a reward."""

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

from hf_distinct.rewards.base import Reward, RewardBatch

OWN_ARGUMENTS = (
    "captions", "references", "completions", "prompts", "completion_ids", "trainer_state", "log_metric", "log_extra",
)  # fmt: skip
"""Arguments that every function may use. A dataset column with one of these names is not passed."""


class CallableReward:
    """A plain function ``reward(captions, references, **columns) -> list of floats`` as a reward.

    The function is called with keyword arguments: those that its signature names, or all of them if it has
    ``**kwargs``:

    - ``captions``: N strings. Rollouts, reference captions and greedy captions are rewarded in one call.
    - ``references``: N lists, all references of each caption's image.
    - each further column of the dataset, by name: N values. The image is not passed.
    - the arguments of a TRL reward function: ``completions`` (the captions, as strings), ``prompts`` (empty strings),
      ``completion_ids`` (the tokens of the captions, rollouts as they were generated: one that reached the maximum
      length has no end token), ``trainer_state``, ``log_metric(name, value)`` (logged as ``reward/NAME``), and
      ``log_extra(column, values)`` (N values, shown in the table of ``log_completions``).

    It returns one number per caption, as a list, an array or a tensor. ``None`` means that the reward does not apply
    to this caption: it is left out of the caption's total and of the logged mean. A caption to which no reward applies
    has no advantage. The trainer skips a step with a NaN or infinite value. The function may be ``async def``; all
    asynchronous rewards run at the same time. TRL's reward models are not supported.

    The value is not an advantage: use a baseline.

    Args:
        function: the function.
        name: the name used in logs; by default the function's name.

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
        # None: the function accepts any argument
        self._parameters: set[str] | None = None
        self._required: set[str] = set()
        self._positional: list[str] = []
        self._read_signature()

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,) float32, NaN where the reward does not apply.

        Raises:
            ValueError: if the function needs an argument that is not available, or does not return one number per
                caption; the message names the reward, the row and the caption.
            RuntimeError: if the function raises; its own error is the cause.
        """
        values, applies = self.begin(batch)()
        return values.masked_fill(~applies.to(values.device), math.nan)

    def begin(self, batch: RewardBatch) -> Callable[[], tuple[Tensor, Tensor]]:
        """Call the function, and return a callable that waits for the values and where they apply, (N,) each.

        Both raise the errors listed for `__call__`. Values are 0 where the reward does not apply. The mask is on the
        CPU, so that the host can read it without waiting for a GPU.
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
        """Whether the function accepts this argument."""
        return self._parameters is None or argument in self._parameters

    def problems(self, columns: Iterable[str]) -> Iterator[str]:
        """Yield a message about required arguments that are not available, or cannot be passed by name.

        Args:
            columns: names of the dataset's further columns.
        """
        if self._positional:
            yield (
                f"reward {self.name!r} is called with keyword arguments, but its {', '.join(self._positional)} is "
                "positional-only: remove the / from its parameters."
            )
        columns = sorted(columns)
        if missing := sorted(self._required - {*columns, *OWN_ARGUMENTS}):
            yield (
                f"reward {self.name!r} needs {', '.join(map(repr, missing))}, which is not a column that rewards can "
                f"read; these are {', '.join(columns) or 'none'}. The function may also use "
                f"{', '.join(OWN_ARGUMENTS)}. Add the column to the dataset, or give the parameter a default."
            )

    def _read_signature(self) -> None:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some functions written in C have no signature
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
            "log_extra": functools.partial(self._log_extra, batch),
        }
        return {name: value for name, value in available.items() if self.takes(name)}

    def _log_extra(self, batch: RewardBatch, column: str, values: Sequence[Any]) -> None:
        if len(values) != len(batch):
            raise ValueError(f"log_extra({column!r}) got {len(values)} values for {len(batch)} captions")
        if column in batch.extras:
            raise ValueError(f"log_extra got the column {column!r} twice: give it another name")
        batch.extras[column] = list(values)


def evaluate_rewards(rewards: Sequence[Reward], batch: RewardBatch) -> list[tuple[Tensor, Tensor]]:
    """Call rewards with one batch; asynchronous ones run at the same time.

    Returns:
        For each reward its values, 0 where it does not apply, and a mask of where it applies, on the CPU: (N,) each.

    Raises:
        ValueError: a reward does not return N values.
        RuntimeError: a reward raises an error; that error is the cause.
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
            f"reward {reward.name!r} returned {found} instead of a tensor of {len(batch)} numbers, one per caption"
        )
    return lambda: (values, torch.ones(len(batch), dtype=torch.bool))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Add the reward's name to an error; the original error, with its traceback, is the cause."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"reward {name!r} failed: {type(error).__name__}: {error}") from error


async def _awaited(result: Any) -> Any:
    return await result


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all steps, because clients that a reward keeps between calls belong to their loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def _as_floats(values: Any, captions: Sequence[str], name: str) -> list[float | None]:
    """Return one float per caption, or None where there is none; errors name the reward, row and caption."""
    if hasattr(values, "tolist"):  # an array or a tensor, on whatever device
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"reward {name!r} returned {type(values).__name__}, not a list of {len(captions)} numbers")
    if len(values) != len(captions):
        # the first caption without a value, or the first value without a caption
        row = min(len(values), len(captions))
        what = f"row {row} (caption {captions[row]!r}) has none" if row < len(captions) else "return no more"
        raise ValueError(f"reward {name!r} returned {len(values)} values for {len(captions)} captions: {what}")
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
        f"reward {name!r} returned {value!r} for row {row}, caption {caption!r}; "
        "return one number per caption (or None where the reward does not apply)"
    )
