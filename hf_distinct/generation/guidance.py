"""Guidance: at decoding, captions that say more of their picture than the captioner by itself would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.modeling_outputs import BaseModelOutput


def drop_images(encoder_hidden_states: Tensor, share: float) -> Tensor:
    """Teach a captioner to write without its picture, too: replace a share of the pictures by nothing.

    Args:
        encoder_hidden_states: ``(N, S, H)``.
        share: the probability of each, from 0 to 1.

    Returns:
        The same with zeros in the place of those drawn, ``(N, S, H)``.
    """
    kept = torch.rand(len(encoder_hidden_states), 1, 1, device=encoder_hidden_states.device) >= share
    return encoder_hidden_states * kept


class ImageGuidance(LogitsProcessor):
    """Classifier-free guidance for a ``VisionEncoderDecoderModel`` (Kornblith et al., arXiv 2307.16686).

    The logits of the next word with the picture, ``l_cond``, and without, ``l_uncond``, become

        l = l_uncond + gamma (l_cond - l_uncond),    p(w) ~ p_uncond(w) (p_cond(w) / p_uncond(w))^gamma

    which for gamma above 1 prefers what the picture makes likelier. Without a picture the decoder attends to zeros; it
    must have learnt to (`drop_images`, or ``recipes/warm_up.py --drop_images 0.5``). What is returned is normalised,
    so that beams of different lengths compare. Each word costs one more pass of the decoder over the words before it:
    there is no cache that a beam search would have to reorder.

    Args:
        model: the captioner, in eval mode.
        gamma: above 0; 1 changes nothing.

    Raises:
        ValueError: if gamma is not positive.

    Example:
        >>> guided = model.generate(pixels, logits_processor=[ImageGuidance(model, 2.0)])  # doctest: +SKIP
    """

    def __init__(self, model: Any, gamma: float) -> None:
        if not gamma > 0:
            raise ValueError(f"guidance={gamma} must be positive; 1 is none.")
        self.model, self.gamma = model, gamma

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Guide the scores ``(N, V)`` of the word behind ``input_ids (N, L)``; log-probabilities come back."""
        # One zero vector is attended to as any number of them: all are alike, and the weights sum to one.
        nothing = scores.new_zeros(len(input_ids), 1, self.model.encoder.config.hidden_size, dtype=self.model.dtype)
        blind = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=nothing),  # type: ignore[arg-type]
            decoder_input_ids=input_ids,
            use_cache=False,
        ).logits[:, -1]
        blind = blind.to(scores)
        return (blind + self.gamma * (scores - blind)).log_softmax(dim=-1)
