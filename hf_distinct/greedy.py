"""Greedy captions beside sampled or searched ones: rows of the same batch instead of passes of their own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, VisionEncoderDecoderModel

from hf_distinct.image_sharing import ImageCache, share_images
from hf_distinct.rollout import encoder_outputs, generate_labels, rollout_config, to_labels, token_id


def generate_with_greedy(
    model: VisionEncoderDecoderModel,
    encoder_hidden_states: Tensor,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList,
) -> tuple[Tensor, Tensor]:
    """Captions as [`generate_labels`] writes them, and the greedy caption of each image.

    Args:
        model: the captioner, unwrapped, in eval mode.
        encoder_hidden_states: ``(B, S, H)``.
        generation_config: beams, or K samples an image.
        logits_processor: for the beams or samples alone.

    Returns:
        Labels ``(B * K, L)``, and those of the greedy captions, ``(B, M)``.
    """
    images, beams = len(encoder_hidden_states), int(generation_config.num_beams or 1)
    write = (model, encoder_hidden_states)
    if generation_config.do_sample:
        both = copy.deepcopy(generation_config)
        both.num_return_sequences = (both.num_return_sequences or 1) + 1
        rows = GreedyRows(both.num_return_sequences, logits_processor)
        labels = generate_labels(*write, both, LogitsProcessorList([rows])).unflatten(0, (images, -1))
        return labels[:, :-1].flatten(0, 1), labels[:, -1]
    longest = generation_config.max_new_tokens
    if beams == 1 or not share_images(model.decoder):
        greedy = rollout_config(model, max_new_tokens=longest)
        return generate_labels(*write, generation_config, logits_processor), generate_labels(*write, greedy)
    beside = GreedyBeside(encoder_hidden_states, beams, token_id(model, "decoder_start_token_id"))
    labels = generate_labels(*write, generation_config, logits_processor, beside)
    return labels, beside.finish(model, longest)


class GreedyRows(LogitsProcessor):
    """Make the last of every image's rows a greedy caption; the others stay samples.

    Args:
        per_image: rows of an image, the greedy one included.
        others: what the other rows are processed by.
    """

    def __init__(self, per_image: int, others: LogitsProcessorList) -> None:
        self.per_image = per_image
        self.others = others

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """Scores ``(N, V)``, those of greedy rows minus infinity but for the largest."""
        best = scores[self.per_image - 1 :: self.per_image].argmax(dim=1, keepdim=True)
        scores = self.others(input_ids, scores.clone())
        scores[self.per_image - 1 :: self.per_image].fill_(-torch.inf).scatter_(1, best, 0.0)
        return scores


class GreedyBeside(ImageCache):
    """Writes a greedy caption of each image in the passes of a beam search, as one more row behind the image's beams.

    The search does not see that row: it is added to what goes into the decoder and taken from what comes out. Tokens
    are those that `generate` would write in a pass of its own.

    Args:
        encoder_hidden_states: ``(B, S, H)``.
        beams: of an image.
        start: the token that captions begin with.
    """

    def __init__(self, encoder_hidden_states: Tensor, beams: int, start: int) -> None:
        super().__init__(encoder_hidden_states)
        self.beams, self.widened = beams, False
        self.tokens = torch.full((self.images, 1), start, device=self.states.device)

    @contextmanager
    def in_passes_of(self, model: Any) -> Iterator[None]:
        """While `generate` searches with this as its cache."""
        hooks = [
            model.register_forward_pre_hook(self._add, with_kwargs=True),
            model.get_output_embeddings().register_forward_pre_hook(self._part),
            model.register_forward_hook(self._take),
        ]
        try:
            with super().in_passes_of(model):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Tokens ``(B * beams, L)`` become ``(B * (beams + 1), L)``."""
        if kwargs.get("past_key_values") is not self:  # a pass that a logits processor makes for itself
            return None
        self.widened = True
        beams = kwargs["decoder_input_ids"].unflatten(0, (self.images, self.beams))
        greedy = self.tokens[:, None, -beams.shape[-1] :]
        return args, kwargs | {"decoder_input_ids": torch.cat([beams, greedy], dim=1).flatten(0, 1)}

    def _part(self, head: Any, args: tuple[Tensor, ...]) -> Tensor | None:
        """Let greedy rows be the last ones: here rows are narrow, behind the head as wide as the vocabulary."""
        if not self.widened:
            return None
        rows = args[0].unflatten(0, (self.images, self.beams + 1))
        return torch.cat([rows[:, :-1].flatten(0, 1), rows[:, -1]])

    def _take(self, model: Any, args: Any, outputs: Any) -> Any:
        """Logits ``(B * (beams + 1), L, V)`` become ``(B * beams, L, V)``."""
        if self.widened:
            self.widened = False
            self._append(outputs.logits[-self.images :])
            outputs.logits = outputs.logits[: -self.images]
        return outputs

    def _append(self, logits: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give beams the past of those they continue, and greedy rows their own."""
        image = torch.arange(self.images, device=beam_idx.device)[:, None]
        beams = beam_idx.view(self.images, self.beams) + image  # b of image i was i * beams + b
        super().reorder_cache(torch.cat([beams, self._greedy(beam_idx.device)[:, None]], dim=1).flatten())

    def _greedy(self, device: torch.device) -> Tensor:
        """The rows of the greedy captions, ``(B,)``."""
        return torch.arange(self.images, device=device) * (self.beams + 1) + self.beams

    @torch.no_grad()
    def finish(self, model: Any, limit: int) -> Tensor:
        """Write on where the search has ended and greedy captions have not; their labels ``(B, L)``.

        Args:
            model: the captioner.
            limit: the most tokens of a caption, without the one it starts with.
        """
        super().reorder_cache(self._greedy(self.tokens.device))  # no beams from here on
        labels = to_labels(model, self.tokens)
        end = token_id(model, "eos_token_id")
        while labels.shape[1] < limit and not (labels == end).any(dim=1).all():
            outputs = model(
                encoder_outputs=encoder_outputs(self.states[:, :1]),
                decoder_input_ids=self.tokens[:, -1:],
                past_key_values=self,
                use_cache=True,
            )
            self._append(outputs.logits)
            labels = to_labels(model, self.tokens)
        return labels
