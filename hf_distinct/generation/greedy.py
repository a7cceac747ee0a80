"""Write greedy captions in the same batch as samples or beams, instead of in separate passes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hf_distinct.captioner import end_ids, token_id
from hf_distinct.families import family_of
from hf_distinct.fast.beam_rows import BeamRows, may_choose_beams
from hf_distinct.fast.shared_cross_attention import share_images
from hf_distinct.generation.labels import to_labels
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.generation.word_limits import word_limits


def generate_with_greedy(
    model: PreTrainedModel,
    encoder_hidden_states: Tensor,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList,
) -> tuple[Tensor, Tensor]:
    """Write captions like [`generate_labels`], and a greedy caption of each image.

    The generation config's word limits (see `hf_distinct.generation.word_limits`) apply to both.

    Args:
        model: the captioner, unwrapped, in eval mode.
        encoder_hidden_states: ``(B, S, H)``.
        generation_config: beams, or K samples per image.
        logits_processor: for the beams or samples only.

    Returns:
        Labels ``(B * K, L)``, and labels of the greedy captions, ``(B, M)``.
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
    if beams == 1 or not share_images(family_of(model).decoder) or not may_choose_beams():
        greedy = rollout_config(model, max_new_tokens=longest)
        return generate_labels(*write, generation_config, logits_processor), generate_labels(*write, greedy)
    start = token_id(model, "decoder_start_token_id")
    limits = word_limits(generation_config, encoder_hidden_states.device)
    search = BeamRows(encoder_hidden_states, beams, True, start, end_ids(model), limits)
    labels = generate_labels(*write, generation_config, logits_processor, search)
    return labels, to_labels(model, search.finish(model, longest))


class GreedyRows(LogitsProcessor):
    """Make the last row of every image a greedy caption; the other rows remain samples.

    Args:
        per_image: rows per image, including the greedy one.
        others: logits processors for the other rows.
    """

    def __init__(self, per_image: int, others: LogitsProcessorList) -> None:
        self.per_image = per_image
        self.others = others

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """Process scores ``(N, V)``; in greedy rows, all but the largest become minus infinity."""
        best = scores[self.per_image - 1 :: self.per_image].argmax(dim=1, keepdim=True)
        scores = self.others(input_ids, scores.clone())
        scores[self.per_image - 1 :: self.per_image].fill_(-torch.inf).scatter_(1, best, 0.0)
        return scores
