"""Captions that have ended take no part in the passes in which others are still written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_distinct.image_sharing import CACHE, ImageCache

SHRINK = 0.8  # of the rows: a pass with as many or fewer that are not finished is worth copying what is kept of them


class DropFinished(ImageCache):
    """Leaves captions out of the decoder's passes once they have ended, greedy ones or samples.

    `generate` does not see it: rows are taken from what goes into the decoder, and what comes out is zero in their
    place, where it writes padding. Tokens are those that it would write otherwise.

    Args:
        encoder_hidden_states: ``(B, S, H)``.
        end: the token that captions end with.
    """

    def __init__(self, encoder_hidden_states: Tensor, end: int) -> None:
        super().__init__(encoder_hidden_states)
        self.end = end
        self.finished = torch.empty(0)  # whether, of all captions

    @contextmanager
    def in_passes_of(self, model: Any) -> Iterator[None]:
        """While `generate` writes with this as its cache."""
        hooks = [
            model.register_forward_pre_hook(self._drop, with_kwargs=True),
            model.register_forward_hook(self._fill, with_kwargs=True),
        ]
        try:
            with super().in_passes_of(model):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _drop(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Tokens ``(N, L)`` become ``(n, L)``."""
        tokens = kwargs["decoder_input_ids"]
        if kwargs.get(CACHE) is not self:  # a pass that a logits processor makes for itself
            return None
        if self.get_seq_length() == 0:  # the start token, which may be the end token, too
            self.captions = len(tokens)
            self.finished = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        else:
            self.finished |= tokens[:, -1] == self.end
        going = (~self.pick(self.finished)).nonzero().squeeze(1)
        if 0 < len(going) <= SHRINK * len(self.pick(self.finished)):
            self.rows = going if self.rows is None else self.rows[going]
            self.self_attention_cache.reorder_cache(going)
        return args, kwargs | {"decoder_input_ids": self.pick(tokens)}

    def _fill(self, model: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        """Logits ``(n, L, V)`` become ``(N, L, V)``."""
        if kwargs.get(CACHE) is self:
            outputs.logits = self.spread(outputs.logits)
        return outputs
