"""Beams that can gain nothing any more take no part in the decoder's passes; greedy captions may join them there."""

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
    """Chooses the rows of a beam search's passes: beams of images still searched for, then greedy captions.

    `generate` goes on with the beams of all images until no image's best captions can change any more. Here those of
    an image whose cannot are left out, and what comes out is zero in their place; whatever becomes of them, `generate`
    does not take it. Greedy captions are rows that the search does not see, until they end. Captions are those that
    `generate` writes, the greedy ones in passes of their own.

    Args:
        encoder_hidden_states: ``(B, S, H)``.
        beams: of an image.
        greedy: whether to write a greedy caption of each image, too.
        start: the token that captions begin with.
        ends: the tokens that they end with.
        limits: the `word_limits` of greedy captions; those of beams are applied by `generate`.
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
        self.places = places[:, :beams].flatten(), places[:, beams:].flatten()  # among all, those of an image in a row
        self.beams, self.greedy = (torch.arange(len(part), device=device) for part in self.places)  # which are in
        self.rows: Tensor = torch.cat(self.places)
        self.searching = torch.ones(self.images, dtype=torch.bool, device=device)
        self.parents = self.beams  # beams whose past each is to have in the next pass
        self.tokens = torch.full((len(self.greedy), 1), start, device=device)  # of greedy captions

    @contextmanager
    def in_passes_of(self, model: Any) -> Iterator[None]:
        """While `generate` searches with this as its cache."""
        still_searching = getattr(model, "_check_early_stop_heuristic", None)  # no part of transformers' public face

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
        """Those of beams that count, then those of greedy captions."""
        if self.get_seq_length() > 0:
            self._choose_rows()
        return torch.cat([tokens[self.beams], self.tokens[self.greedy, -tokens.shape[1] :]])

    def _choose_rows(self) -> None:
        """Let those rows into the pass that matter, each with the past of the beam that it continues."""
        past = self.rows.new_empty(self.captions)  # of each caption its row so far
        past[self.rows] = torch.arange(len(self.rows), device=past.device)
        self.beams = self.searching.repeat_interleave(len(self.parents) // self.images).nonzero().squeeze(1)
        self.greedy = (~self._ended()).nonzero().squeeze(1)
        beams, greedy = self.places
        super().reorder_cache(past[torch.cat([beams[self.parents[self.beams]], greedy[self.greedy]])])
        self.rows = torch.cat([beams[self.beams], greedy[self.greedy]])

    def restore(self, logits: Tensor) -> Tensor:
        """Keep what greedy captions say next; zero for beams that do not count."""
        beams, greedy = logits.tensor_split([len(self.beams)])
        scores = greedy[:, -1]
        if self.limits:
            scores = self.limits(self.tokens[self.greedy], scores.float())
        tokens = self.ends[:1].repeat(len(self.tokens), 1)  # of those that have ended before
        tokens[self.greedy] = scores.argmax(dim=-1, keepdim=True)
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        if len(beams) == len(self.parents):
            return beams
        return beams.new_zeros(len(self.parents), *beams.shape[1:]).index_copy_(0, self.beams, beams)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give beams the past of those they continue: not before the next pass, when it is known which matter."""
        self.parents = beam_idx

    def _ended(self) -> Tensor:
        """Which greedy captions have: ``(B,)`` bool."""
        return torch.isin(self.tokens[:, -1], self.ends)

    @torch.no_grad()
    def finish(self, model: Any, limit: int) -> Tensor:
        """Write on where the search has ended and greedy captions have not: their tokens ``(B, 1 + L)``.

        Args:
            model: the captioner.
            limit: the most tokens of a caption, without the one it starts with.
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
    alone, beside = (BeamRows(states, 3, greedy, START, [END]) for greedy in (False, True))
    same = all(same_captions(cache, states, num_beams=3, num_return_sequences=2) for cache in (alone, beside))
    watched = not bool(alone.searching.all())  # else the search does not say which images it is done with
    return same and watched and beside.finish(trial_captioner(), 12).shape[0] == len(states)
