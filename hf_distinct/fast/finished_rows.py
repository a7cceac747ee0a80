"""Finished captions leave the decoder's batch while others are still being written."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_distinct.fast import usable
from hf_distinct.fast.shared_cross_attention import ImageCache, same_captions
from hf_distinct.fast.trial_model import END, trial_states_of_all_kinds

SHRINK = 0.8  # copying the cache pays off if at most this fraction of the rows is unfinished


class DropFinished(ImageCache):
    """Leaves finished captions, greedy ones or samples, out of the decoder's passes.

    `generate` does not notice: rows are removed from the decoder's input, and their logits are filled with zeros,
    where `generate` writes padding. The tokens do not change.

    Args:
        encoder_hidden_states: ``(B, S, H)``.
        ends: the end tokens.
    """

    def __init__(self, encoder_hidden_states: Tensor, ends: list[int]) -> None:
        super().__init__(encoder_hidden_states)
        self.ends = torch.tensor(ends, device=self.states.device)
        self.finished = torch.empty(0)  # bool, one per caption

    def choose(self, tokens: Tensor) -> Tensor:
        """Return the tokens of unfinished captions, once enough captions have ended."""
        if self.get_seq_length() == 0:  # the start token may also be the end token
            self.captions = len(tokens)
            self.finished = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        else:
            self.finished |= torch.isin(tokens[:, -1], self.ends)
        finished = self.pick(self.finished)
        going = (~finished).nonzero().squeeze(1)
        if len(going) <= SHRINK * len(finished):
            self.rows = going if self.rows is None else self.rows[going]
            self.reorder_cache(going)
        return self.pick(tokens)

    def restore(self, logits: Tensor) -> Tensor:
        """Fill in zeros for captions that have ended."""
        return self.spread(logits)


def may_drop_finished() -> bool:
    """Whether [`DropFinished`] may be used."""
    return usable("finished_rows", _trial)


def _trial() -> bool:
    states = trial_states_of_all_kinds()
    return same_captions(DropFinished(states, [END]), states)
