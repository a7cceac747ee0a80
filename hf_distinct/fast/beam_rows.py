"""Beams that can no longer improve leave the decoder's batch; greedy captions may be written in the same passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_distinct.fast import usable
from hf_distinct.fast.shared_cross_attention import CACHE, ImageCache, same_captions
from hf_distinct.fast.trial_model import END, START, trial_captioner, trial_states_of_all_kinds


class BeamRows(ImageCache):
    """Selects the rows of a beam search's decoder passes: beams of unfinished images, then greedy captions.

    `generate` continues all beams until no image's best captions can change. This class leaves out the beams of images
    that are finished and returns zero logits for them, which `generate` does not use. Greedy captions are additional
    rows that the search does not see. All captions equal those that separate calls of `generate` write.

    Args:
        encoder_hidden_states: ``(B, S, H)``.
        beams: number of beams per image.
        greedy: also write a greedy caption of each image.
        start: the start token.
        ends: the end tokens.
        limits: the `word_limits` of greedy captions; for beams, `generate` applies them.
    """

    def __init__(
        self,
        encoder_hidden_states: Tensor,
        beams: int,
        greedy: bool,
        start: int,
        ends: list[int],
        limits: Any = None,
    ) -> None:
        super().__init__(encoder_hidden_states)
        device, self.limits = self.states.device, limits
        self.ends = torch.tensor(ends, device=device)
        self.captions = self.images * (beams + greedy)
        places = torch.arange(self.captions, device=device).view(self.images, -1)
        self.places = places[:, :beams].flatten(), places[:, beams:].flatten()  # rows of each image are adjacent
        self.beams, self.greedy = (torch.arange(len(part), device=device) for part in self.places)  # active rows
        self.rows: Tensor = torch.cat(self.places)
        self.searching = torch.ones(self.images, dtype=torch.bool, device=device)
        self.parents = self.beams  # the beam that each beam continues in the next pass
        self.tokens = torch.full((len(self.greedy), 1), start, device=device)  # of the greedy captions

    @contextmanager
    def in_passes_of(self, model: Any) -> Iterator[None]:
        """Select rows while `generate` searches with this cache."""
        still_searching = getattr(model, "_check_early_stop_heuristic", None)  # private in transformers

        def watched(*args: Any, **kwargs: Any) -> Any:
            found = still_searching(*args, **kwargs)  # type: ignore[misc]
            self.searching = found.squeeze(1)
            return found

        if still_searching is not None:
            model._check_early_stop_heuristic = watched
        try:
            with super().in_passes_of(model):
                yield
        finally:
            vars(model).pop("_check_early_stop_heuristic", None)

    def choose(self, tokens: Tensor) -> Tensor:
        """Return the tokens of active beams, followed by those of active greedy captions."""
        if self.get_seq_length() > 0:
            self._choose_rows()
        return torch.cat([tokens[self.beams], self.tokens[self.greedy, -tokens.shape[1] :]])

    def _choose_rows(self) -> None:
        """Select the rows of the next pass and reorder the cache, so that each beam continues its parent."""
        past = self.rows.new_empty(self.captions)  # current row of each caption
        past[self.rows] = torch.arange(len(self.rows), device=past.device)
        self.beams = self.searching.repeat_interleave(len(self.parents) // self.images).nonzero().squeeze(1)
        self.greedy = (~self._ended()).nonzero().squeeze(1)
        beams, greedy = self.places
        super().reorder_cache(past[torch.cat([beams[self.parents[self.beams]], greedy[self.greedy]])])
        self.rows = torch.cat([beams[self.beams], greedy[self.greedy]])

    def restore(self, logits: Tensor) -> Tensor:
        """Store the next tokens of greedy captions, and fill in zeros for inactive beams."""
        beams, greedy = logits.tensor_split([len(self.beams)])
        scores = greedy[:, -1]
        if self.limits:
            scores = self.limits(self.tokens[self.greedy], scores.float())
        tokens = self.ends[:1].repeat(len(self.tokens), 1)  # for captions that have already ended
        tokens[self.greedy] = scores.argmax(dim=-1, keepdim=True)
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        if len(beams) == len(self.parents):
            return beams
        return beams.new_zeros(len(self.parents), *beams.shape[1:]).index_copy_(0, self.beams, beams)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Remember the beams to continue. The cache is reordered in the next pass, when the active rows are known."""
        self.parents = beam_idx

    def _ended(self) -> Tensor:
        """Return which greedy captions have ended: ``(B,)`` bool."""
        return torch.isin(self.tokens[:, -1], self.ends)

    @torch.no_grad()
    def finish(self, model: Any, limit: int) -> Tensor:
        """Complete the greedy captions after the search has ended, and return their tokens ``(B, 1 + L)``.

        Args:
            model: the captioner.
            limit: maximum number of tokens per caption, without the start token.
        """
        self.searching = torch.zeros_like(self.searching)
        unused = self.parents[:, None]
        with self.in_passes_of(model):
            while self.tokens.shape[1] <= limit and not bool(self._ended().all()):
                model(decoder_input_ids=unused, use_cache=True, **{CACHE: self})
        return self.tokens


def may_choose_beams() -> bool:
    """Whether [`BeamRows`] may be used."""
    return usable("beam_rows", _trial)


def _trial() -> bool:
    states = trial_states_of_all_kinds()
    alone, with_greedy = (BeamRows(states, 3, greedy, START, [END]) for greedy in (False, True))
    same = all(same_captions(cache, states, num_beams=3, num_return_sequences=2) for cache in (alone, with_greedy))
    watched = not bool(alone.searching.all())  # otherwise the search does not report which images are finished
    return same and watched and with_greedy.finish(trial_captioner(), 12).shape[0] == len(states)
