"""The interface of rewards: their input, and their protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformers import TrainerState


class TextKind(IntEnum):
    """Origin of a text in the pool."""

    ROLLOUT = 0
    REFERENCE = 1
    GREEDY = 2
    MEMORY = 3
    """A caption of an earlier batch, of any kind."""


@dataclass
class TextPool:
    """The texts T of the global batch that captions are compared with.

    Attributes:
        embeds: (P, dim) normalised embeddings.
        text_ids: (P,) int64, equal if and only if the strings are equal.
        image_ids: (P,) int64, the image that each text describes.
        kinds: (P,) integers, one [`TextKind`] each.

    Raises:
        ValueError: if the lengths differ.
    """

    embeds: Tensor
    text_ids: Tensor
    image_ids: Tensor
    kinds: Tensor

    def __post_init__(self) -> None:
        """Check that all four have the same length."""
        _check_lengths("TextPool", len(self.embeds), {k: getattr(self, k) for k in ("text_ids", "image_ids", "kinds")})


@dataclass
class ImagePool:
    """The images V of the global batch and their mined neighbours.

    Attributes:
        embeds: (Q, dim) normalised embeddings; Q may be 0.
        image_ids: (Q,) int64.

    Raises:
        ValueError: if the lengths differ.
    """

    embeds: Tensor
    image_ids: Tensor

    def __post_init__(self) -> None:
        """Check that both have the same length."""
        _check_lengths("ImagePool", len(self.embeds), {"image_ids": self.image_ids})


@dataclass
class RewardBatch:
    """N captions to reward, each with its image, and the pools that they are compared with.

    Captions come from this process, pools from all processes. Rollouts, greedy captions and references are in the same
    batch and get the same reward.

    Attributes:
        captions: N strings.
        references: N lists, all references of each caption's image.
        text_embeds: (N, dim) normalised embeddings of the captions.
        image_embeds: (N, dim) normalised embeddings of each caption's own image.
        text_ids: (N,) int64, comparable with those of ``text_pool``.
        image_ids: (N,) int64, comparable with those of both pools.
        text_pool: see [`TextPool`].
        image_pool: see [`ImagePool`].
        logit_scale: s of the CLIP model, ``logit_scale.exp()``, e.g. 100.
        columns: further columns of the dataset, N values each.
        completion_ids: N lists with the captioner's tokens of each caption; empty if no reward uses them.
        trainer_state: the Trainer's state; None outside of training.
        metrics: lists of numbers by name. The mean of what a reward adds here is logged as ``reward/NAME``.
        extras: N values by column. The table of ``log_completions`` shows what a reward adds here.

    Raises:
        ValueError: if something does not have exactly N entries.
    """

    captions: list[str]
    references: list[list[str]]
    text_embeds: Tensor
    image_embeds: Tensor
    text_ids: Tensor
    image_ids: Tensor
    text_pool: TextPool
    image_pool: ImagePool
    logit_scale: float
    columns: dict[str, list[Any]] = field(default_factory=dict)
    completion_ids: list[list[int]] = field(default_factory=list)
    trainer_state: TrainerState | None = None
    metrics: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that everything has one entry per caption."""
        names = ("references", "text_embeds", "image_embeds", "text_ids", "image_ids")
        columns = {f"column {name!r}": values for name, values in self.columns.items()}
        _check_lengths("RewardBatch", len(self.captions), {name: getattr(self, name) for name in names} | columns)

    def __len__(self) -> int:
        """Return the number of captions, N."""
        return len(self.captions)


@runtime_checkable
class Reward(Protocol):
    """Protocol of a reward: an object with a name, called with a batch.

    Write such a class if your reward needs embeddings or pools. If it only needs captions, references and columns,
    write a plain function, see [`CallableReward`].

    Attributes:
        name: the name used in logs.
        is_advantage: True if the value is already an advantage and needs no baseline.
    """

    name: str
    is_advantage: bool

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,), float32 (or float64 if the embeddings are)."""
        ...


def _check_lengths(owner: str, expected: int, entries: dict[str, Any]) -> None:
    for name, values in entries.items():
        if len(values) != expected:
            raise ValueError(f"{owner}: {name} has {len(values)} entries, expected {expected}")
