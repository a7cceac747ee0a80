"""What rollouts ask of `generate` in ways of their own: no n-gram twice, and samples by one random number each."""

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


class MultinomialSampling(LogitsProcessor):
    """Make of greedy decoding a draw from the softmax, by one random number a caption.

    ``do_sample`` draws by ``torch.multinomial``, which takes a random number for every token of the vocabulary. Here
    the number is looked up among the cumulated probabilities. Both draw from the same distribution.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(N, V)``, logits or log-probabilities, become minus infinity but for the token drawn."""
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # which that device has not
        cumulated = scores.softmax(dim=-1).cumsum(dim=-1, dtype=wide)
        # Above 0 and at most the sum of all: the first token that reaches it has a probability above 0.
        above_zero = 1 - torch.rand(len(scores), 1, dtype=wide, device=scores.device)
        drawn = torch.searchsorted(cumulated, above_zero * cumulated[:, -1:])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)
