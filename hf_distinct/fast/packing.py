"""Score captions of different lengths without computing their padding; only attention sees the padded form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from hf_distinct.fast import usable
from hf_distinct.fast.shared_cross_attention import share_images
from hf_distinct.fast.trial_model import PER_IMAGE, same, trial_captioner, trial_states, trial_tokens


class Packing:
    """The real tokens of captions ``(N, L)`` as T rows of one token each; attention still sees whole captions.

    Args:
        real: ``(N, L)`` bool, True for real tokens. Padding must come last.
    """

    def __init__(self, real: Tensor) -> None:
        self.shape = real.shape
        self.places = real.flatten().nonzero().squeeze(1)
        self.positions = self.places[:, None] % real.shape[1]  # (T, 1), position within the caption

    def spread(self, hidden: Tensor) -> Tensor:
        """Turn tokens ``(T, 1, H)`` into captions ``(N, L, H)``, with zeros where there is no token."""
        captions = hidden.new_zeros(self.shape.numel(), hidden.shape[-1])
        return captions.index_copy(0, self.places, hidden.squeeze(1)).unflatten(0, self.shape)

    def pick(self, hidden: Tensor) -> Tensor:
        """Undo `spread`: turn captions ``(N, L, H)`` into tokens ``(T, 1, H)``."""
        return hidden.flatten(0, 1).index_select(0, self.places).unsqueeze(1)

    @contextmanager
    def in_passes_of(self, decoder: nn.Module) -> Iterator[None]:
        """Let a GPT-2 that shares its images read tokens ``(T, 1)``; its attention works as usual."""
        layers: list[Any] = [layer for layer in decoder.modules() if isinstance(layer, GPT2Attention)]
        hooks: list[Any] = []
        for layer in layers:
            if layer.is_cross_attention:
                layer.packing = self
            else:
                hooks.append(layer.c_attn.register_forward_hook(lambda layer, args, hidden: self.spread(hidden)))
                hooks.append(layer.c_proj.register_forward_pre_hook(lambda layer, args: self.pick(args[0])))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer in layers:
                if layer.is_cross_attention:
                    layer.packing = None


def may_pack() -> bool:
    """Whether [`Packing`] may be used."""
    return usable("packing", _trial)


def _trial() -> bool:
    model, states, tokens = trial_captioner(), trial_states(), trial_tokens()
    real = torch.arange(tokens.shape[1]) < torch.tensor([6, 2, 4, 1, 5, 3])[:, None]

    def logits(states: Tensor, tokens: Tensor, **settings: Any) -> Tensor:
        outputs: Any = BaseModelOutput(last_hidden_state=states)  # type: ignore[arg-type]
        mask = torch.ones_like(tokens)
        return model(
            encoder_outputs=outputs, decoder_input_ids=tokens, decoder_attention_mask=mask, use_cache=False, **settings
        ).logits

    expected = logits(states.repeat_interleave(PER_IMAGE, dim=0), tokens)[real]
    packing = Packing(real)
    if not share_images(model.decoder):
        return False
    with packing.in_passes_of(model.decoder):
        found = logits(states, tokens[real].unsqueeze(1), decoder_position_ids=packing.positions).squeeze(1)
    return same(found, expected)
