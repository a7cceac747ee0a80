"""Captions that have ended take no part in the passes in which others are still written."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_distinct.fast import usable
from hf_distinct.fast.shared_cross_attention import ImageCache, same_captions
from hf_distinct.fast.trial_model import END, trial_states_of_all_kinds

SHRINK = 0.8  # of the rows: a pass with as many or fewer that are not finished is worth copying what is kept of them


class DropFinished(ImageCache):
    """Leaves captions out of the decoder's passes once they have ended, greedy ones or samples.

    `generate` does not see it: rows are taken from what goes into the decoder, and what comes out is zero in their
    place, where it writes padding. Tokens are those that it would write otherwise.

    Args:
        encoder_hidden_states: ``(B, S, H)``.
        ends: the tokens that captions end with.
    """

    def __init__(self, encoder_hidden_states: Tensor, ends: list[int]) -> None:
        super().__init__(encoder_hidden_states)
        self.ends = torch.tensor(ends, device=self.states.device)
        self.finished = torch.empty(0)  # whether, of all captions

    def choose(self, tokens: Tensor) -> Tensor:
        """Those of captions that go on, once enough have ended."""
        if self.get_seq_length() == 0:  # the start token, which may be the end token, too
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
        """Zero for captions that have ended."""
        return self.spread(logits)


def may_drop_finished() -> bool:
    """Whether [`DropFinished`] may be used."""
    return usable("finished_rows", _trial)


def _trial() -> bool:
    states = trial_states_of_all_kinds()
    return same_captions(DropFinished(states, [END]), states)
