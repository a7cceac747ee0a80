"""Classifier-free guidance: decode captions that are more specific to their image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from hf_distinct.families import family_of


def drop_images(encoder_hidden_states: Tensor, share: float) -> Tensor:
    """Train a captioner to write without an image as well: replace a fraction of the images by zeros.

    Args:
        encoder_hidden_states: ``(N, S, H)``.
        share: probability that an image is replaced, from 0 to 1.

    Returns:
        ``(N, S, H)``, with zeros for the replaced images.
    """
    kept = torch.rand(len(encoder_hidden_states), 1, 1, device=encoder_hidden_states.device) >= share
    return encoder_hidden_states * kept


class ImageGuidance(LogitsProcessor):
    """Classifier-free guidance for a captioner (Kornblith et al., arXiv 2307.16686).

    The logits of the next word with the image, ``l_cond``, and without it, ``l_uncond``, are combined:

        l = l_uncond + gamma (l_cond - l_uncond),    p(w) ~ p_uncond(w) (p_cond(w) / p_uncond(w))^gamma

    With gamma above 1, words that the image makes more likely are preferred. Without an image the decoder attends to
    zeros, which the captioner must have seen in training (`drop_images`, or ``hf-distinct warm-up --drop_images
    0.5``). The result is normalised, so that beams of different lengths are comparable. Each token costs one more
    decoder pass over all tokens before it, because there is no cache that a beam search could reorder.

    Args:
        model: the captioner, in eval mode.
        gamma: above 0; 1 has no effect.

    Raises:
        ValueError: if gamma is not positive.

    Example:
        >>> guided = model.generate(pixels, logits_processor=[ImageGuidance(model, 2.0)])  # doctest: +SKIP
    """

    def __init__(self, model: Any, gamma: float) -> None:
        if not gamma > 0:
            raise ValueError(f"guidance={gamma} must be positive; 1 turns it off.")
        self.model, self.gamma = model, gamma

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guide the scores ``(N, V)`` of the token after ``input_ids (N, L)``; returns log-probabilities."""
        family = family_of(self.model)
        blind = family.logits(self.model, family.no_image(len(input_ids)), input_ids)[:, -1]
        blind = blind.to(scores)
        return (blind + self.gamma * (scores - blind)).log_softmax(dim=-1)
