"""Write captions from encoded images: rollouts by sampling or beam search, and their generation config."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, TemperatureLogitsWarper

from hf_distinct.captioner import end_ids, token_id
from hf_distinct.families import family_of
from hf_distinct.fast.beam_rows import BeamRows, may_choose_beams
from hf_distinct.fast.finished_rows import DropFinished, may_drop_finished
from hf_distinct.fast.narrow_products import narrow_products
from hf_distinct.fast.shared_cross_attention import CACHE, ImageCache, share_images
from hf_distinct.generation.labels import to_labels
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.generation.word_limits import WORD_LIMITS

ONE_CAPTION = {"num_return_sequences": 1, "return_dict_in_generate": False}
"""Arguments that make ``generate`` return one row of tokens per image, whatever the generation config says."""


def rollout_config(model: PreTrainedModel, **settings: Any) -> GenerationConfig:
    """Create a generation config with the model's special tokens, length and word limits, and ``settings``.

    Other preferences of the checkpoint (such as ``top_k=50``) are left out: with them, samples would not come from the
    policy whose log-probabilities the loss uses. The checkpoint's word limits
    ([`hf_distinct.generation.word_limits.WORD_LIMITS`]) are part of that policy.
    """
    own, ends = model.generation_config or GenerationConfig(), end_ids(model)
    base: dict[str, Any] = {
        "decoder_start_token_id": token_id(model, "decoder_start_token_id"),
        "eos_token_id": ends if len(ends) > 1 else ends[0],
        "pad_token_id": token_id(model, "pad_token_id"),
        "bos_token_id": own.bos_token_id,
        "max_new_tokens": longest_caption(own),
        **{name: value for name in WORD_LIMITS if (value := getattr(own, name, None)) is not None},
    }
    if settings.get("do_sample"):
        base["top_k"] = 0
    return GenerationConfig(**{**base, **{name: value for name, value in settings.items() if value is not None}})


def longest_caption(config: GenerationConfig) -> int:
    """Return the maximum number of tokens after the start token; the default is 20, as in `generate`."""
    if config.max_new_tokens:
        return config.max_new_tokens
    return 20 if config.max_length in (None, GenerationConfig().max_length) else config.max_length - 1


def generate_labels(
    model: PreTrainedModel,
    encoder_hidden_states: Tensor,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList | None = None,
    cache: ImageCache | None = None,
) -> Tensor:
    """Write captions from encoded images, without calling the encoder.

    Args:
        model: the captioner, unwrapped, in eval mode.
        encoder_hidden_states: ``(B, S, H)``.
        generation_config: ``num_return_sequences`` is K, the captions per image. With ``do_sample``, they are sampled
            at ``temperature`` from the whole vocabulary, by [`MultinomialSampling`].
        logits_processor: additional logits processors.
        cache: a new cache; by default the standard one.

    Returns:
        Token ids ``(B * K, L)``, including the end token, and -100 after it.
    """
    states, family = encoder_hidden_states.detach(), family_of(model)
    if cache is None and share_images(family.decoder):
        start, beams = token_id(model, "decoder_start_token_id"), generation_config.num_beams or 1
        ends = end_ids(model)
        if beams == 1:
            cache = DropFinished(states, ends) if may_drop_finished() else ImageCache(states)
        else:
            cache = BeamRows(states, beams, False, start, ends) if may_choose_beams() else ImageCache(states)
    given = states if cache is None else states[:, :1]  # `generate` only reads the number of images from it
    if generation_config.do_sample:
        given = given.repeat_interleave(generation_config.num_return_sequences or 1, dim=0)
        generation_config, logits_processor = _drawn(generation_config, logits_processor or [])
    # `generate` takes unset values from the model's own config: num_beams=4 there would turn samples into beam
    # samples. `use_model_defaults=False` prevents this, but not in every version.
    own, family.writer.generation_config = family.writer.generation_config, generation_config
    try:
        passes = nullcontext() if cache is None else cache.in_passes_of(model)
        with torch.no_grad(), narrow_products(model), passes:
            sequences = family.generate(
                given,
                generation_config=generation_config,
                logits_processor=logits_processor,
                synced_gpus=False,  # see generation_ready
                **{CACHE: cache},
            )
    finally:
        family.writer.generation_config = own
    return to_labels(model, sequences)


def _drawn(config: GenerationConfig, processors: Iterable[Any]) -> tuple[GenerationConfig, LogitsProcessorList]:
    """Turn sampling into greedy decoding with a sampling logits processor."""
    usual, greedy = GenerationConfig(), copy.deepcopy(config)
    greedy.update(do_sample=False, num_return_sequences=1, temperature=usual.temperature, top_k=usual.top_k)
    return greedy, LogitsProcessorList(
        [*processors, TemperatureLogitsWarper(float(config.temperature or 1)), MultinomialSampling()]
    )
