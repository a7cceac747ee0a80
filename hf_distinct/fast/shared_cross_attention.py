"""Captions of one image share its cross-attention keys and values, which are computed and stored once per image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from hf_distinct.fast import usable
from hf_distinct.fast.trial_model import PER_IMAGE, same, trial_captioner, trial_states, trial_tokens

# Name of the cache argument of models and layers; transformers 5.24 renamed it.
CACHE = "cache" if "cache" in signature(VisionEncoderDecoderModel.forward).parameters else "past_key_values"


class ImageCache(EncoderDecoderCache):
    """The cache of `generate` for B images: self-attention with a row per caption, cross-attention per image.

    Args:
        encoder_hidden_states: ``(B, S, H)``. The number of captions is a multiple of B; captions of an image are
            adjacent.
    """

    def __init__(self, encoder_hidden_states: Tensor) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.states, self.images = encoder_hidden_states.detach(), len(encoder_hidden_states)
        self.captions = self.images
        self.rows: Tensor | None = None  # captions that take part in the passes; None: all, in order

    @contextmanager
    def in_passes_of(self, model: Any) -> Iterator[None]:
        """While `generate` uses this cache, its passes get the encoder states of this cache."""
        hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if kwargs.get(CACHE) is not self:  # a pass that a logits processor runs itself
            return None
        # After the first token, cross-attention has cached what it needs.
        states = self.states if self.get_seq_length() == 0 else self.states[:, :1]
        tokens = self.choose(kwargs["decoder_input_ids"])
        given = {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "decoder_input_ids": tokens}
        return args, kwargs | given

    def _after(self, model: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if kwargs.get(CACHE) is self:
            outputs.logits = self.restore(outputs.logits)
        return outputs

    def choose(self, tokens: Tensor) -> Tensor:
        """Select the tokens of a pass, ``(n, L)``, from those that `generate` passes, ``(N, L)``; by default all."""
        return tokens

    def restore(self, logits: Tensor) -> Tensor:
        """Turn the logits of a pass ``(n, L, V)`` into those that `generate` expects, ``(N, L, V)``."""
        return logits

    def spread(self, hidden: Tensor) -> Tensor:
        """Turn the rows of a pass ``(n, ...)`` into rows of all captions ``(N, ...)``, with zeros for the others."""
        if self.rows is None:
            return hidden
        return hidden.new_zeros(self.captions, *hidden.shape[1:]).index_copy_(0, self.rows, hidden)

    def pick(self, hidden: Tensor) -> Tensor:
        """Undo `spread`: select the rows of the captions that take part."""
        return hidden if self.rows is None else hidden[self.rows]

    def reorder_cache(self, beam_idx: Any) -> None:
        """Let each beam continue its parent; cross-attention stays, since all beams of an image share the image."""
        self.self_attention_cache.reorder_cache(beam_idx)


def share_images(decoder: nn.Module) -> bool:
    """Let a decoder read encoder states of B images for N captions, N a multiple of B; captions of an image adjacent.

    Cross-attention does not depend on the order of queries. So the captions of an image become one long row of
    queries, and the layer computes the rest with any attention implementation. If N equals B, nothing changes. Calling
    this again for the same decoder has no effect.

    Returns:
        Whether this decoder supports it: GPT-2 does, if accelerations are on. Otherwise, repeat the encoder states.
    """
    layers = [
        module for module in decoder.modules() if isinstance(module, GPT2Attention) and module.is_cross_attention
    ]
    if not layers or not usable("shared_cross_attention", _trial):
        return False
    layer: Any
    for layer in layers:
        if not hasattr(layer, "captions"):
            layer.captions = 0  # N of the current pass, for `_unfold`
            layer.packing = None  # of the current pass, see `packing.py`
            layer.register_forward_pre_hook(_fold, with_kwargs=True)
            layer.register_forward_hook(_unfold, with_kwargs=True)
    return True


def _trial() -> bool:
    model, states, tokens = trial_captioner(), trial_states(), trial_tokens()

    def logits(states: Tensor) -> Tensor:
        outputs: Any = BaseModelOutput(last_hidden_state=states)  # type: ignore[arg-type]
        return model(encoder_outputs=outputs, decoder_input_ids=tokens, use_cache=False).logits

    expected = logits(states.repeat_interleave(PER_IMAGE, dim=0))
    return share_images(model.decoder) and same(logits(states), expected)


def _fold(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn queries ``(N, L, H)`` into ``(B, N / B * L, H)``."""
    hidden, *others = args
    if (rows := _rows(layer, kwargs)) is not None:
        hidden = rows.spread(hidden)
    layer.captions, images = len(hidden), len(kwargs["encoder_hidden_states"])
    if layer.captions % images:
        raise ValueError(f"{layer.captions} captions cannot be divided evenly among {images} images.")
    return (hidden.reshape(images, -1, hidden.shape[-1]), *others), kwargs


def _unfold(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Turn the output ``(B, N / B * L, H)`` back into ``(N, L, H)``."""
    hidden, *others = outputs
    hidden = hidden.reshape(layer.captions, -1, hidden.shape[-1])
    if (rows := _rows(layer, kwargs)) is not None:
        hidden = rows.pick(hidden)
    return (hidden, *others)


def _rows(layer: Any, kwargs: dict[str, Any]) -> Any:
    """Return the object that maps the rows of a pass to captions, if any."""
    return cache if isinstance(cache := kwargs[CACHE], ImageCache) else layer.packing


def same_captions(cache: ImageCache, states: Tensor, **how: Any) -> bool:
    """Whether the trial captioner writes the same captions with this cache as without it.

    Args:
        cache: a new cache for ``states``.
        states: ``(B, S, H)``.
        how: arguments of ``generate``.
    """
    model: Any = trial_captioner()
    how = {"max_new_tokens": 12, "do_sample": False, **how}

    def write(states: Tensor, **given: Any) -> Tensor:
        outputs: Any = BaseModelOutput(last_hidden_state=states)  # type: ignore[arg-type]
        return model.generate(encoder_outputs=outputs, **how, **given)

    expected = write(states)
    with cache.in_passes_of(model):
        return share_images(model.decoder) and write(states[:, :1], **{CACHE: cache}).equal(expected)
