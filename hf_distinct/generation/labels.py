"""Captions as labels, that is token ids with -100 after the end: join them, decode them, and measure them."""

from __future__ import annotations

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distinct.captioner import end_ids
from hf_distinct.data.hashing import stable_hash
from hf_distinct.distributed.gathering import gather_rows
from hf_distinct.losses import IGNORED_LABEL


def to_labels(model: PreTrainedModel, sequences: Tensor) -> Tensor:
    """Turn captions with a start token ``(N, 1 + L)`` into labels ``(N, L)``, with -100 after the end token."""
    tokens = sequences[:, 1:]
    ends = are_ends(tokens, end_ids(model))
    # The cumulative sum is 1 at the first end token, which is kept. Later tokens are padding, even if pad equals eos.
    return tokens.masked_fill(ends.cumsum(dim=1) - ends.long() > 0, IGNORED_LABEL)


def are_ends(tokens: Tensor, ends: list[int]) -> Tensor:
    """Return which tokens end a caption: one bool per token."""
    return torch.isin(tokens, torch.tensor(ends, device=tokens.device))


def join_labels(*labels: Tensor) -> Tensor:
    """Stack label tensors of different lengths, ``(N_i, L_i)`` each, into ``(sum N_i, max L_i)``, padded with -100."""
    longest = max((part.shape[1] for part in labels if len(part)), default=0)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=IGNORED_LABEL) for part in labels if len(part)])


def decode(tokenizer: PreTrainedTokenizerBase, labels: Tensor) -> list[str]:
    """Decode captions to text, without special tokens."""
    rows = [[token for token in row if token != IGNORED_LABEL] for row in labels.tolist()]
    if not rows:  # transformers 5 reads no rows as one empty caption
        return []
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def rollout_figures(
    labels: Tensor, captions: list[str], ends: list[int], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Compute the mean length of the rollouts of all processes, and how many are finished, repetitive and unique.

    Args:
        labels: ``(N, L)`` of this process. Rows beyond the number of captions belong to a placeholder image.
        captions: their texts, at most N.
        ends: the end tokens.
        accelerator: gives access to the other processes.

    Returns:
        ``length`` in tokens; ``ended``, the fraction with an end token; ``repeated``, the fraction that contains the
        same three tokens twice; and ``unique``, the number of distinct captions divided by the number of captions.
        number of different captions over that of captions.
    """
    labels = labels[: len(captions)]
    ids = torch.tensor([stable_hash(caption) for caption in captions], dtype=torch.int64, device=labels.device)
    lengths, ended = (labels != IGNORED_LABEL).sum(dim=1), are_ends(labels, ends).any(dim=1)
    columns = torch.stack([lengths, ended.long(), repeats(labels).long(), ids], dim=1)
    lengths, ended, repeated, ids = gather_rows(columns, accelerator).unbind(dim=1)
    unique = 1 + ids.sort().values.diff().ne(0).sum()  # `Tensor.unique` would wait for the device
    means = {"length": lengths, "ended": ended, "repeated": repeated}
    return {name: values.float().mean() for name, values in means.items()} | {"unique": unique / len(ids)}


def repeats(labels: Tensor, n: int = 3) -> Tensor:
    """Return whether each caption contains the same n-gram twice: ``(N,)`` bool, for labels ``(N, L)``."""
    grams = F.pad(labels, (0, n - 1), value=IGNORED_LABEL).unfold(1, n, 1)  # (N, L, n)
    real = (grams != IGNORED_LABEL).all(dim=2)
    same = (grams[:, :, None] == grams[:, None]).all(dim=3) & real[:, None]
    return same.triu(diagonal=1).flatten(1).any(dim=1)
