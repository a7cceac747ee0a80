"""Captions of one image share its cross-attention: keys and values are computed, kept and read once an image."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention


class ImageCache(EncoderDecoderCache):
    """What `generate` keeps of B images: of self-attention a row a caption, of cross-attention a row an image.

    Args:
        images: B. The captions that are written are a multiple of it, those of an image in a row.
    """

    def __init__(self, images: int) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.images = images

    def reorder_cache(self, beam_idx: Any) -> None:
        """Give beams the past of those they continue; all beams of an image have the same image."""
        self.self_attention_cache.reorder_cache(beam_idx)


def share_images(decoder: nn.Module) -> bool:
    """Let a decoder read encoder states of B rows for a multiple of B captions, those of an image in a row.

    Cross-attention knows no order of its queries, so the captions of an image become one long row of them, and the
    layer, of whatever attention implementation, does the rest. Nothing changes where both are equally many rows. Told
    again of the same decoder, it does nothing.

    Returns:
        Whether this decoder can: GPT-2 can. For others, the encoder states must be repeated.
    """
    layers = [
        module for module in decoder.modules() if isinstance(module, GPT2Attention) and module.is_cross_attention
    ]
    layer: Any
    for layer in layers:
        if not hasattr(layer, "captions"):
            layer.captions = 0  # N of the pass that the layer is in, for `_unfold`
            layer.register_forward_pre_hook(_fold, with_kwargs=True)
            layer.register_forward_hook(_unfold)
    return bool(layers)


def _fold(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Queries ``(N, L, H)`` become ``(B, N / B * L, H)``; what `generate` repeated to N rows becomes B again."""
    hidden, *others = args
    cache, states, mask = kwargs["past_key_values"], kwargs["encoder_hidden_states"], kwargs["encoder_attention_mask"]
    images = cache.images if isinstance(cache, ImageCache) else len(states)
    if len(states) != images:  # they are only read for the first token
        first = not cache.is_updated.get(layer.layer_idx)
        kwargs["encoder_hidden_states"] = states[:: len(states) // images].contiguous() if first else states
        kwargs["encoder_attention_mask"] = mask if mask is None else mask[:: len(mask) // images]
    layer.captions = len(hidden)
    return (hidden.reshape(images, -1, hidden.shape[-1]), *others), kwargs


def _unfold(layer: Any, args: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give every caption its row of the output again."""
    hidden, *others = outputs
    return (hidden.reshape(layer.captions, -1, hidden.shape[-1]), *others)
