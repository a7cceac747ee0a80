"""What rollouts ask of `generate` in a way of their own: no n-gram twice."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class NoRepeatNGrams(LogitsProcessor):
    """Forbid tokens that would end an n-gram which the caption has already.

    It does what ``no_repeat_ngram_size`` does, without the loops over tokens on the host that take an eighth of a step
    of the shipped captioner.

    Args:
        size: n.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(N, V)``, minus infinity where forbidden, of captions that so far are ``(N, L)``."""
        length = input_ids.shape[1]
        if length < self.size:
            return scores
        grams = input_ids.unfold(1, self.size, 1)  # (N, L - n + 1, n)
        again = (grams[..., :-1] == input_ids[:, None, length - self.size + 1 :]).all(dim=2)
        limits = torch.full_like(again, torch.inf, dtype=scores.dtype).masked_fill(again, -torch.inf)
        return scores.scatter_reduce(1, grams[..., -1], limits, "amin")
