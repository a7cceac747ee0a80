"""Any function of captions as a reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_distinct.rewards.base import RewardBatch


class CallableReward:
    """A plain function ``reward(captions, references, **columns) -> list of floats`` as a reward.

    The function gets, by keyword, those of these that it names (all of them if it takes ``**kwargs``): ``captions``,
    ``references`` (all the references of each caption's image), each further column of the dataset and, so that
    functions written for TRL work as they are, ``completions`` (the captions) and ``prompts`` (empty strings).

    Its value is no advantage: use it with a baseline.

    Args:
        function: the function. It gives one number for each caption, as a list, an array or a tensor. A step with a
            NaN or an infinite one is left out by the trainer.
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
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        # None: the function takes whatever it is given
        self._parameters: set[str] | None = None
        self._required: set[str] = set()
        self._read_signature()

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,) float32.

        Raises:
            ValueError: if the function needs an argument that is no column, or if what it gives is not one number for
                each caption; the message names the reward, the row and the caption.
        """
        values = self.function(**self._arguments(batch))
        numbers = _as_floats(values, batch.captions, self.name)
        return torch.tensor(numbers, dtype=torch.float32, device=batch.text_embeds.device)

    def _read_signature(self) -> None:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some functions written in C tell nothing about themselves
            return
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._required = {p.name for p in named if p.default is p.empty}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            self._parameters = {p.name for p in named}

    def _arguments(self, batch: RewardBatch) -> dict[str, Any]:
        available: dict[str, Any] = {
            **batch.columns,
            "captions": batch.captions,
            "references": batch.references,
            "completions": batch.captions,
            "prompts": [""] * len(batch),
        }
        missing = sorted(self._required - available.keys())
        if missing:
            raise ValueError(
                f"reward {self.name!r} needs {', '.join(map(repr, missing))}, which is no column of the dataset; "
                f"there are {', '.join(sorted(available))}. Add the column or give the parameter a default."
            )
        if self._parameters is None:
            return available
        return {name: value for name, value in available.items() if name in self._parameters}


def _as_floats(values: Any, captions: Sequence[str], name: str) -> list[float]:
    """One float for each caption, or an error that names the reward, the row and the caption."""
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


def _as_float(value: Any, row: int, caption: str, name: str) -> float:
    if value is not None and not isinstance(value, (str, bytes)):
        try:
            return float(value)
        except OverflowError:  # an integer beyond all floats
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):
            pass
    raise ValueError(
        f"reward {name!r} gave {value!r} for row {row}, caption {caption!r}; "
        "each caption needs one number (give 0.0 where the reward has nothing to say)"
    )
