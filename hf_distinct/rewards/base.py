"""What a reward sees and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from transformers import TrainerState


class TextKind(IntEnum):
    """Where a text of the pool comes from."""

    ROLLOUT = 0
    REFERENCE = 1
    GREEDY = 2
    MEMORY = 3
    """A caption of an earlier batch, whatever it was there."""


@dataclass
class TextPool:
    """The texts T of the global batch, against which a caption is compared.

    Attributes:
        embeds: (P, dim) normalised embeddings.
        text_ids: (P,) int64, equal exactly where the strings are equal.
        image_ids: (P,) int64, the image that each text describes.
        kinds: (P,) integers, a [`TextKind`] each.

    Raises:
        ValueError: if the lengths differ.
    """

    embeds: Tensor
    text_ids: Tensor
    image_ids: Tensor
    kinds: Tensor

    def __post_init__(self) -> None:
        """Check that the four belong together."""
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
        """Check that the two belong together."""
        _check_lengths("ImagePool", len(self.embeds), {"image_ids": self.image_ids})


@dataclass
class RewardBatch:
    """N captions to be rewarded, each with its image, and the pools they are compared with.

    The captions are those of this process; the pools are of all processes. One type serves rollouts, greedy captions
    and references alike, for all get the same reward.

    Attributes:
        captions: N strings.
        references: N lists, all the references of each caption's image.
        text_embeds: (N, dim) normalised embeddings of the captions.
        image_embeds: (N, dim) normalised embeddings of each caption's own image.
        text_ids: (N,) int64, comparable with those of ``text_pool``.
        image_ids: (N,) int64, comparable with those of both pools.
        text_pool: see [`TextPool`].
        image_pool: see [`ImagePool`].
        logit_scale: s of the CLIP model, ``logit_scale.exp()``, e.g. 100.
        columns: further columns of the dataset, N values each.
        completion_ids: N lists, the tokens of each caption under the captioner's tokenizer, end token included; empty
            where no reward asks for them.
        trainer_state: the Trainer's state; None outside of a training.
        metrics: lists of numbers by name. What a reward adds here is logged as ``reward/NAME``, as a mean.

    Raises:
        ValueError: if something has not exactly N entries.
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

    def __post_init__(self) -> None:
        """Check that everything has one entry for each caption."""
        names = ("references", "text_embeds", "image_embeds", "text_ids", "image_ids")
        columns = {f"column {name!r}": values for name, values in self.columns.items()}
        _check_lengths("RewardBatch", len(self.captions), {name: getattr(self, name) for name in names} | columns)

    def __len__(self) -> int:
        """Number of captions, N."""
        return len(self.captions)


@runtime_checkable
class Reward(Protocol):
    """A reward: an object with a name, called with a batch.

    Write a class with these members to see embeddings and pools; a plain function of captions and references needs
    none of it, see [`CallableReward`].

    Attributes:
        name: the name under which it is logged.
        is_advantage: True if the value is an advantage already and needs no baseline.
    """

    name: str
    is_advantage: bool

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,), float32 (float64 where the embeddings are)."""
        ...


def _check_lengths(owner: str, expected: int, entries: dict[str, Any]) -> None:
    for name, values in entries.items():
        if len(values) != expected:
            raise ValueError(f"{owner}: {name} has {len(values)} entries, expected {expected}")
