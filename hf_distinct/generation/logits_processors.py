"""Logits processors for rollouts: no repeated n-grams, and sampling with one random number per caption."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


class NoRepeatNGrams(LogitsProcessor):
    """Forbid tokens that would repeat an n-gram of the caption.

    Same results as ``no_repeat_ngram_size``, without its loops over tokens on the host, which take an eighth of a
    training step with the shipped captioner.

    Args:
        size: n.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set forbidden scores ``(N, V)`` to minus infinity, for captions ``(N, L)`` so far."""
        length = input_ids.shape[1]
        if length < self.size:
            return scores
        grams = input_ids.unfold(1, self.size, 1)  # (N, L - n + 1, n)
        again = (grams[..., :-1] == input_ids[:, None, length - self.size + 1 :]).all(dim=2)
        limits = torch.full_like(again, torch.inf, dtype=scores.dtype).masked_fill(again, -torch.inf)
        return scores.scatter_reduce(1, grams[..., -1], limits, "amin")


class MultinomialSampling(LogitsProcessor):
    """Turn greedy decoding into sampling from the softmax, with one random number per caption.

    ``do_sample`` uses ``torch.multinomial``, which draws a random number for every token of the vocabulary. Here one
    number is looked up in the cumulative probabilities. Both sample from the same distribution.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set scores ``(N, V)``, logits or log-probabilities, to minus infinity except for the sampled token."""
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
        cumulated = scores.softmax(dim=-1).cumsum(dim=-1, dtype=wide)
        # Above 0 and at most the total: the first token that reaches it has a probability above 0.
        above_zero = 1 - torch.rand(len(scores), 1, dtype=wide, device=scores.device)
        drawn = torch.searchsorted(cumulated, above_zero * cumulated[:, -1:])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)
