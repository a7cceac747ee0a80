"""Captions of one image share its cross-attention: keys and values are computed, kept and read once an image."""

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

# What transformers calls a cache among a model's arguments, and those of its layers; 5.24 renamed it.
CACHE = "cache" if "cache" in signature(VisionEncoderDecoderModel.forward).parameters else "past_key_values"


class ImageCache(EncoderDecoderCache):
    """What `generate` keeps of B images: of self-attention a row a caption, of cross-attention a row an image.

    Args:
        encoder_hidden_states: ``(B, S, H)``. The captions that are written are a multiple of B, those of an image in
            a row.
    """

    def __init__(self, encoder_hidden_states: Tensor) -> None:
        super().__init__(DynamicCache(), DynamicCache())
        self.states, self.images = encoder_hidden_states.detach(), len(encoder_hidden_states)
        self.captions = self.images
        self.rows: Tensor | None = None  # which captions are in the passes; None: all, in order

    @contextmanager
    def in_passes_of(self, model: Any) -> Iterator[None]:
        """While `generate` writes with this as its cache: its passes get the encoder states, whatever it was given."""
        hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._behind, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if kwargs.get(CACHE) is not self:  # a pass that a logits processor makes for itself
            return None
        # Behind the first token, cross-attention has all it needs of them.
        states = self.states if self.get_seq_length() == 0 else self.states[:, :1]
        tokens = self.choose(kwargs["decoder_input_ids"])
        given = {"encoder_outputs": BaseModelOutput(last_hidden_state=states), "decoder_input_ids": tokens}
        return args, kwargs | given

    def _behind(self, model: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if kwargs.get(CACHE) is self:
            outputs.logits = self.restore(outputs.logits)
        return outputs

    def choose(self, tokens: Tensor) -> Tensor:
        """Of the tokens ``(N, L)`` that `generate` gives to a pass, those that are in it, ``(n, L)``: all."""
        return tokens

    def restore(self, logits: Tensor) -> Tensor:
        """Make of the logits ``(n, L, V)`` of a pass what `generate` expects, ``(N, L, V)``."""
        return logits

    def spread(self, hidden: Tensor) -> Tensor:
        """Rows ``(n, ...)`` of a pass become rows ``(N, ...)`` of all captions, 0 for those that are not in it."""
        if self.rows is None:
            return hidden
        return hidden.new_zeros(self.captions, *hidden.shape[1:]).index_copy_(0, self.rows, hidden)

    def pick(self, hidden: Tensor) -> Tensor:
        """And back again."""
        return hidden if self.rows is None else hidden[self.rows]

    def reorder_cache(self, beam_idx: Any) -> None:
        """Give beams the past of those they continue; all beams of an image have the same image."""
        self.self_attention_cache.reorder_cache(beam_idx)


def share_images(decoder: nn.Module) -> bool:
    """Let a decoder read encoder states of B rows for a multiple of B captions, those of an image in a row.

    Cross-attention knows no order of its queries, so the captions of an image become one long row of them, and the
    layer, of whatever attention implementation, does the rest. Nothing changes where both are equally many rows. Told
    again of the same decoder, it does nothing.

    Returns:
        Whether this decoder can: GPT-2 can, while accelerations are on. Else the encoder states must be repeated.
    """
    layers = [
        module for module in decoder.modules() if isinstance(module, GPT2Attention) and module.is_cross_attention
    ]
    if not layers or not usable("shared_cross_attention", _trial):
        return False
    layer: Any
    for layer in layers:
        if not hasattr(layer, "captions"):
            layer.captions = 0  # N of the pass that the layer is in, for `_unfold`
            layer.packing = None  # of that pass, see `packing.py`
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
    """Queries ``(N, L, H)`` become ``(B, N / B * L, H)``."""
    hidden, *others = args
    if (rows := _rows(layer, kwargs)) is not None:
        hidden = rows.spread(hidden)
    layer.captions, images = len(hidden), len(kwargs["encoder_hidden_states"])
    if layer.captions % images:
        raise ValueError(f"{layer.captions} captions cannot be of {images} images, each with as many as any other.")
    return (hidden.reshape(images, -1, hidden.shape[-1]), *others), kwargs


def _unfold(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give every caption its row of the output again."""
    hidden, *others = outputs
    hidden = hidden.reshape(layer.captions, -1, hidden.shape[-1])
    if (rows := _rows(layer, kwargs)) is not None:
        hidden = rows.pick(hidden)
    return (hidden, *others)


def _rows(layer: Any, kwargs: dict[str, Any]) -> Any:
    """What the rows of a pass are of its captions, where they are not just these."""
    return cache if isinstance(cache := kwargs[CACHE], ImageCache) else layer.packing


def same_captions(cache: ImageCache, states: Tensor, **how: Any) -> bool:
    """Whether the trial captioner writes the same captions with a cache as `generate` does by itself.

    Args:
        cache: a new one of ``states``.
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
