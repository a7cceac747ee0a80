"""What rollouts ask of `generate` beyond its own: no n-gram twice, and greedy captions beside samples."""

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


class GreedyRows(LogitsProcessor):
    """Make the last of every image's rows a greedy caption; the others stay samples.

    Args:
        per_image: rows of an image, the greedy one included.
    """

    def __init__(self, per_image: int) -> None:
        self.per_image = per_image

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(N, V)``, those of greedy rows minus infinity but for the largest."""
        scores = scores.clone()
        greedy = scores[self.per_image - 1 :: self.per_image]
        best = greedy.argmax(dim=1, keepdim=True)
        greedy.fill_(-torch.inf).scatter_(1, best, 0.0)
        return scores
