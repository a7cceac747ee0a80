"""What a captioner does in a step: encode images once, write captions, give log-probabilities of given captions."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct.beam_rows import BeamRows
from hf_distinct.checkpointing import checkpointed_layers
from hf_distinct.data.hashing import stable_hash
from hf_distinct.finished_rows import DropFinished
from hf_distinct.gathering import gather_rows
from hf_distinct.image_sharing import CACHE, ImageCache, share_images
from hf_distinct.logits_processors import MultinomialSampling
from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.narrow_products import narrow_products
from hf_distinct.packing import Packing
from hf_distinct.word_limits import WORD_LIMITS

ONE_CAPTION = {"num_return_sequences": 1, "return_dict_in_generate": False}
"""Arguments of ``generate`` by which it gives one row of tokens a picture, whatever a generation config asks for."""


def captioner_in(model: Any, accelerator: Accelerator) -> VisionEncoderDecoderModel:
    """The captioner itself, out of the wrappers of Accelerate, DeepSpeed and peft; adapters stay in its layers."""
    if isinstance(model, VisionEncoderDecoderModel):  # Accelerate would ask each of its modules
        return model
    return without_adapters(accelerator.unwrap_model(model))


def without_adapters(model: Any) -> Any:
    """The model that peft gave adapters; any other model as it is."""
    # peft.PeftModel, without a need for peft.
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_id(model: VisionEncoderDecoderModel, name: str) -> int:
    """A special token's id, from the generation config or, where that is silent, from the model's config."""
    return _token_ids(model, name)[0]


def end_ids(model: VisionEncoderDecoderModel) -> list[int]:
    """The tokens that end a caption, each of them."""
    return _token_ids(model, "eos_token_id")


def _token_ids(model: VisionEncoderDecoderModel, name: str) -> list[int]:
    value = getattr(model.generation_config, name, None)
    value = getattr(model.config, name) if value is None else value
    return [int(token) for token in (value if isinstance(value, (list, tuple)) else [value])]


def encode(encoder: Any, pixel_values: Tensor, accelerator: Accelerator) -> Tensor:
    """Images ``(B, 3, H, W)`` as the encoder sees them, ``(B, S, H)``; those that are encoded already as they are.

    It stands outside of the forward that Accelerate wraps, so that half precision is asked for here. As there, what
    comes out of half precision is float32.
    """
    if pixel_values.dim() == 3:
        return pixel_values
    with accelerator.autocast():
        hidden = encoder(pixel_values).last_hidden_state
    return hidden.float() if accelerator.native_amp else hidden


def encoder_outputs(hidden_states: Any) -> BaseModelOutput:
    """Encoded images as the captioner takes them instead of pixels."""
    return BaseModelOutput(last_hidden_state=hidden_states)


def rollout_config(model: VisionEncoderDecoderModel, **settings: Any) -> GenerationConfig:
    """A generation config of the model's special tokens, length and word limits, with ``settings`` and nothing else.

    ``generate`` would otherwise mix in what the checkpoint prefers (``top_k=50`` and the like), and samples would not
    come from the policy whose log-probabilities the loss takes. What the checkpoint forbids and forces
    ([`hf_distinct.word_limits.WORD_LIMITS`]) is part of that policy.
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
    """The maximum number of tokens after the start token: as in `generate`, 20 if no other number is set."""
    if config.max_new_tokens:
        return config.max_new_tokens
    return 20 if config.max_length in (None, GenerationConfig().max_length) else config.max_length - 1


def generate_labels(
    model: VisionEncoderDecoderModel,
    encoder_hidden_states: Tensor,
    generation_config: GenerationConfig,
    logits_processor: LogitsProcessorList | None = None,
    cache: ImageCache | None = None,
) -> Tensor:
    """Write captions from encoded images; the encoder is not called.

    Args:
        model: the captioner, unwrapped, in eval mode.
        encoder_hidden_states: ``(B, S, H)``.
        generation_config: ``num_return_sequences`` K captions an image; with ``do_sample`` drawn at ``temperature``
            from the whole vocabulary, by [`MultinomialSampling`].
        logits_processor: as `generate` takes it.
        cache: a new one; None: the usual one.

    Returns:
        Token ids ``(B * K, L)``, with the end token, and -100 after it.
    """
    states = encoder_hidden_states.detach()
    if cache is None and share_images(model.decoder):
        start, beams = token_id(model, "decoder_start_token_id"), generation_config.num_beams or 1
        ends = end_ids(model)
        cache = DropFinished(states, ends) if beams == 1 else BeamRows(states, beams, False, start, ends)
    given = states if cache is None else states[:, :1]  # of which `generate` takes the number of images
    if generation_config.do_sample:
        given = given.repeat_interleave(generation_config.num_return_sequences or 1, dim=0)
        generation_config, logits_processor = _drawn(generation_config, logits_processor or [])
    # `generate` fills what stands at its default from the model's own config: num_beams=4 there would turn samples
    # into beam samples. `use_model_defaults=False` says no to it, but not in every version.
    own, model.generation_config = model.generation_config, generation_config
    writer: Any = model  # transformers 5 types `generate` for a mixin that this class, to mypy, is not
    try:
        passes = nullcontext() if cache is None else cache.in_passes_of(model)
        with torch.no_grad(), narrow_products(model), passes:
            sequences = writer.generate(
                encoder_outputs=encoder_outputs(given),
                generation_config=generation_config,
                logits_processor=logits_processor,
                synced_gpus=False,  # see generation_ready
                **{CACHE: cache},
            )
    finally:
        model.generation_config = own
    return to_labels(model, sequences)


def _drawn(config: GenerationConfig, processors: Iterable[Any]) -> tuple[GenerationConfig, LogitsProcessorList]:
    """Samples as greedy captions of processed logits."""
    usual, greedy = GenerationConfig(), copy.deepcopy(config)
    greedy.update(do_sample=False, num_return_sequences=1, temperature=usual.temperature, top_k=usual.top_k)
    return greedy, LogitsProcessorList(
        [*processors, TemperatureLogitsWarper(float(config.temperature or 1)), MultinomialSampling()]
    )


def to_labels(model: VisionEncoderDecoderModel, sequences: Tensor) -> Tensor:
    """What follows the start token in captions ``(N, 1 + L)``, as labels ``(N, L)``: -100 after the end token."""
    tokens = sequences[:, 1:]
    ends = are_ends(tokens, end_ids(model))
    # The first end token counts 1 on its own place; everything behind it is padding, even where pad equals eos.
    return tokens.masked_fill(ends.cumsum(dim=1) - ends.long() > 0, IGNORED_LABEL)


def are_ends(tokens: Tensor, ends: list[int]) -> Tensor:
    """Which tokens end a caption: a bool for each."""
    return torch.isin(tokens, torch.tensor(ends, device=tokens.device))


def join_labels(*labels: Tensor) -> Tensor:
    """Stack label tensors of different lengths, ``(N_i, L_i)`` each, into ``(sum N_i, max L_i)``, padded with -100."""
    longest = max((part.shape[1] for part in labels if len(part)), default=0)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=IGNORED_LABEL) for part in labels if len(part)])


def decode(tokenizer: PreTrainedTokenizerBase, labels: Tensor) -> list[str]:
    """Captions as text, special tokens left out."""
    rows = [[token for token in row if token != IGNORED_LABEL] for row in labels.tolist()]
    if not rows:  # transformers 5 reads no rows as one empty caption
        return []
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def rollout_figures(
    labels: Tensor, captions: list[str], ends: list[int], accelerator: Accelerator
) -> dict[str, Tensor]:
    """How long the rollouts of all processes are, and which shares of them end by themselves and are not repeated.

    Args:
        labels: ``(N, L)`` of this process; those after the captions belong to a stand-in.
        captions: their texts, at most N.
        ends: the end tokens.
        accelerator: knows the other processes.

    Returns:
        ``length`` in tokens; ``ended``; ``repeated``, the share with the same three tokens twice; and ``unique``, the
        number of different captions over that of captions.
    """
    labels = labels[: len(captions)]
    ids = torch.tensor([stable_hash(caption) for caption in captions], dtype=torch.int64, device=labels.device)
    lengths, ended = (labels != IGNORED_LABEL).sum(dim=1), are_ends(labels, ends).any(dim=1)
    columns = torch.stack([lengths, ended.long(), repeats(labels).long(), ids], dim=1)
    lengths, ended, repeated, ids = gather_rows(columns, accelerator).unbind(dim=1)
    unique = 1 + ids.sort().values.diff().ne(0).sum()  # `Tensor.unique` would wait for the device
    means = {"length": lengths, "ended": ended, "repeated": repeated}
    return {name: values.float().mean() for name, values in means.items()} | {"unique": unique / len(ids)}


def repeats(labels: Tensor, n: int = 3) -> Tensor:
    """Whether each caption has the same n tokens in a row twice: ``(N,)`` bool, of labels ``(N, L)``."""
    grams = F.pad(labels, (0, n - 1), value=IGNORED_LABEL).unfold(1, n, 1)  # (N, L, n)
    real = (grams != IGNORED_LABEL).all(dim=2)
    same = (grams[:, :, None] == grams[:, None]).all(dim=3) & real[:, None]
    return same.triu(diagonal=1).flatten(1).any(dim=1)


def caption_logits(model: Any, encoder_hidden_states: Tensor, labels: Tensor) -> Tensor:
    """Logits of given captions in one decoder pass.

    Padding follows the end token, and a causal decoder never looks at later tokens, so it changes nothing.

    Args:
        model: the captioner; the wrapped one where gradients are wanted.
        encoder_hidden_states: ``(B, S, H)``, one row an image.
        labels: ``(N, L)`` token ids, -100 after the end; N is a multiple of B, the captions of an image in a row.

    Returns:
        ``(N, L, V)``: position ``l`` scores ``labels[:, l]``.
    """
    captioner = without_adapters(getattr(model, "module", model))
    if not share_images(captioner.decoder):
        encoder_hidden_states = encoder_hidden_states.repeat_interleave(
            len(labels) // len(encoder_hidden_states), dim=0
        )
    return _logits(model, encoder_hidden_states, _inputs(captioner, labels))


def token_logits(model: Any, encoder_hidden_states: Tensor, labels: Tensor) -> Tensor:
    """As [`caption_logits`], of real tokens alone: those of a padded position are not computed where that can be.

    It can be with GPT-2 on torch's own attention, unless layers are to be computed again in the backward pass.

    Returns:
        ``(T, V)``, in the order of ``labels[labels != -100]``.
    """
    captioner = without_adapters(getattr(model, "module", model))
    decoder, real = captioner.decoder, labels != IGNORED_LABEL
    packing = Packing(real)
    again = torch.is_grad_enabled() and bool(checkpointed_layers(decoder))
    torchs_own = decoder.config._attn_implementation == "sdpa"
    if again or not torchs_own or not len(packing.places) or not share_images(decoder):
        return caption_logits(model, encoder_hidden_states, labels)[real]
    inputs = _inputs(captioner, labels)[real].unsqueeze(1)
    with packing.in_passes_of(decoder):
        logits = _logits(model, encoder_hidden_states, inputs, decoder_position_ids=packing.positions)
    return logits.squeeze(1)


def policy_logits(
    logits: Tensor, temperature: float, forbidden: Tensor | None = None, where: Tensor | None = None
) -> Tensor:
    """Logits of what captions are drawn from, of a captioner's own: divided by the temperature, no forbidden token.

    With logits 0 and ln 9 and temperature 2, the tokens have the probabilities 1/4 and 3/4 instead of 1/10 and 9/10.

    Args:
        logits: ``(T, V)``.
        temperature: above 0.
        forbidden: ``(t, V)`` bool, see `forbidden_tokens`.
        where: ``(T,)`` bool, the t rows that ``forbidden`` is of; none: all.

    Returns:
        ``(T, V)``; the very same at temperature 1 with nothing forbidden. A forbidden token has the least number there
        is, with which, unlike minus infinity, divergences are numbers.
    """
    if temperature != 1:
        logits = logits / temperature
    if forbidden is None:
        return logits
    if where is not None:
        forbidden = torch.zeros_like(logits, dtype=torch.bool).masked_scatter_(where[:, None], forbidden)
    return logits.masked_fill(forbidden, torch.finfo(logits.dtype).min)


def _inputs(captioner: VisionEncoderDecoderModel, labels: Tensor) -> Tensor:
    """What the decoder reads when it is to say the labels."""
    inputs = labels.masked_fill(labels == IGNORED_LABEL, token_id(captioner, "pad_token_id")).roll(1, dims=1)
    inputs[:, 0] = token_id(captioner, "decoder_start_token_id")
    return inputs


def _logits(model: Any, encoder_hidden_states: Tensor, inputs: Tensor, **settings: Any) -> Tensor:
    outputs = model(
        encoder_outputs=encoder_outputs(encoder_hidden_states),
        decoder_input_ids=inputs,
        decoder_attention_mask=torch.ones_like(inputs),  # else it looks for captions in a row, and makes a mask
        use_cache=False,
        **settings,
    )
    return outputs.logits


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Inside, the weights that ZeRO-3 has split among processes are whole; without it nothing happens."""
    split = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        yield


@contextmanager
def generation_ready(model: Any, accelerator: Accelerator) -> Iterator[VisionEncoderDecoderModel]:
    """The captioner, unwrapped and whole, for as long as it generates.

    Under ZeRO-3 every process holds a slice of each weight, from the moment on at which the captioner is loaded. They
    are gathered once for the whole of the generation, and the engine's hooks, which would gather them again for each
    token, are off meanwhile; before training there is no engine yet. Processes may then write captions of different
    lengths and number: ``generate(synced_gpus=False)``.
    """
    captioner = captioner_in(model, accelerator)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        yield captioner
        return
    with gathered(captioner):
        if not hasattr(model, "module"):
            yield captioner
            return
        offload = model.optimizer.parameter_offload
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield captioner
        finally:
            offload._register_deepspeed_module(offload.module)
