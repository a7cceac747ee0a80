"""What a captioner does in a step: encode images once, write captions, give log-probabilities of given captions."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BaseImageProcessor,
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
from hf_distinct.data.images import decode_image, to_pixel_values
from hf_distinct.finished_rows import DropFinished
from hf_distinct.gathering import gather_rows
from hf_distinct.image_sharing import CACHE, ImageCache, share_images
from hf_distinct.logits_processors import MultinomialSampling
from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.narrow_products import narrow_products
from hf_distinct.packing import Packing


def check_captioner(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise ValueError if the model cannot be trained as a captioner, saying what it lacks."""
    model = _without_adapters(model)
    if not isinstance(model, VisionEncoderDecoderModel):
        raise ValueError(f"The captioner must be a VisionEncoderDecoderModel, not a {type(model).__name__}.")
    if tokenizer is None or tokenizer.eos_token_id is None:
        raise ValueError("The captioner needs a tokenizer with an end token: pass it as processing_class.")
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if getattr(model.generation_config, name, None) is None and getattr(model.config, name, None) is None:
            raise ValueError(
                f"The captioner has no {name}. Set model.config.{name} and model.generation_config.{name}, e.g. to "
                f"the tokenizer's; without it no caption begins or ends."
            )
    if token_id(model, "eos_token_id") != tokenizer.eos_token_id:
        raise ValueError(
            f"The captioner ends its captions with token {token_id(model, 'eos_token_id')}, the tokenizer those that "
            f"people wrote with {tokenizer.eos_token_id}. Set eos_token_id on both of the model's configs."
        )


def captioner_in(model: Any, accelerator: Accelerator) -> VisionEncoderDecoderModel:
    """The captioner itself, out of the wrappers of Accelerate, DeepSpeed and peft; adapters stay in its layers."""
    if isinstance(model, VisionEncoderDecoderModel):  # Accelerate would ask each of its modules
        return model
    return _without_adapters(accelerator.unwrap_model(model))


def _without_adapters(model: Any) -> Any:
    # peft.PeftModel, without a need for peft.
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_positions(model: VisionEncoderDecoderModel) -> int:
    """The longest caption, in tokens, that the decoder has positions for."""
    return int(getattr(model.config.decoder, "max_position_embeddings", None) or sys.maxsize)


def token_id(model: VisionEncoderDecoderModel, name: str) -> int:
    """A special token's id, from the generation config or, where that is silent, from the model's config."""
    value = getattr(model.generation_config, name, None)
    value = getattr(model.config, name) if value is None else value
    return int(value[0] if isinstance(value, list) else value)


def encoder_outputs(hidden_states: Any) -> BaseModelOutput:
    """Encoded images as the captioner takes them instead of pixels."""
    return BaseModelOutput(last_hidden_state=hidden_states)


def rollout_config(model: VisionEncoderDecoderModel, **settings: Any) -> GenerationConfig:
    """A generation config of the model's special tokens and length, with ``settings`` and nothing else.

    ``generate`` would otherwise mix in what the checkpoint prefers (``top_k=50`` and the like), and samples would not
    come from the policy whose log-probabilities the loss takes.
    """
    own = model.generation_config or GenerationConfig()
    base: dict[str, Any] = {
        "decoder_start_token_id": token_id(model, "decoder_start_token_id"),
        "eos_token_id": token_id(model, "eos_token_id"),
        "pad_token_id": token_id(model, "pad_token_id"),
        "bos_token_id": own.bos_token_id,
        "max_new_tokens": own.max_new_tokens or _longest(own.max_length),
    }
    if settings.get("do_sample"):
        base["top_k"] = 0
    return GenerationConfig(**{**base, **{name: value for name, value in settings.items() if value is not None}})


def _longest(max_length: int | None) -> int:
    """Tokens behind the start token: as `generate` has it, 20 where nobody said any other number."""
    return 20 if max_length in (None, GenerationConfig().max_length) else max_length - 1


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
        cache: a fresh one, if not the usual.

    Returns:
        Token ids ``(B * K, L)``, the end token included, -100 behind it.
    """
    states = encoder_hidden_states.detach()
    if cache is None and share_images(model.decoder):
        start, end = (token_id(model, name) for name in ("decoder_start_token_id", "eos_token_id"))
        beams = generation_config.num_beams or 1
        cache = DropFinished(states, end) if beams == 1 else BeamRows(states, beams, False, start, end)
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
    """What follows the start token in captions ``(N, 1 + L)``, as labels ``(N, L)``: -100 behind the end token."""
    tokens = sequences[:, 1:]
    ends = tokens == token_id(model, "eos_token_id")
    # The first end token counts 1 on its own place; everything behind it is padding, even where pad equals eos.
    return tokens.masked_fill(ends.cumsum(dim=1) - ends.long() > 0, IGNORED_LABEL)


def join_labels(*labels: Tensor) -> Tensor:
    """Stack label tensors of different lengths, ``(N_i, L_i)`` each, into ``(sum N_i, max L_i)``, padded with -100."""
    return pad_sequence([row for part in labels for row in part], batch_first=True, padding_value=IGNORED_LABEL)


def decode(tokenizer: PreTrainedTokenizerBase, labels: Tensor) -> list[str]:
    """Captions as text, special tokens left out."""
    rows = [[token for token in row if token != IGNORED_LABEL] for row in labels.tolist()]
    if not rows:  # transformers 5 reads no rows as one empty caption
        return []
    return [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def rollout_figures(labels: Tensor, captions: list[str], end: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """How long the rollouts of all processes are, and which shares of them end by themselves and are not repeated.

    Args:
        labels: ``(N, L)`` of this process; those behind the captions are a stand-in's.
        captions: their texts, at most N.
        end: the end token.
        accelerator: knows the other processes.

    Returns:
        ``length`` in tokens; ``ended``; ``repeated``, the share with the same three tokens twice; and ``unique``, the
        number of different captions over that of captions.
    """
    labels = labels[: len(captions)]
    ids = torch.tensor([stable_hash(caption) for caption in captions], dtype=torch.int64, device=labels.device)
    lengths, ended = (labels != IGNORED_LABEL).sum(dim=1), (labels == end).any(dim=1)
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


def write_captions(
    model: VisionEncoderDecoderModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    batch_size: int,
) -> list[str]:
    """Caption a dataset as ``pipeline("image-to-text")`` does: by the model's own generation config.

    Args:
        model: the captioner, unwrapped, in eval mode.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        dataset: has ``image``.
        batch_size: images at a time.

    Returns:
        One caption a row, in order.
    """
    sequences = write_sequences(model, image_processor, dataset, batch_size)
    return decode(tokenizer, pad_sequences(sequences, token_id(model, "pad_token_id")))


@torch.no_grad()
def write_sequences(
    model: VisionEncoderDecoderModel,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    batch_size: int,
    **generation: Any,
) -> list[Tensor]:
    """As [`write_captions`], in tokens.

    Args:
        model: see there.
        image_processor: see there.
        dataset: see there.
        batch_size: see there.
        generation: of ``generate``, before the model's own generation config.

    Returns:
        ``(1 + L,)`` for each row, in order, on the CPU: the start token first, padded as its batch was.
    """
    writer: Any = model
    sequences: list[Tensor] = []
    for start in range(0, len(dataset), batch_size):
        images = [decode_image(image) for image in dataset[start : start + batch_size]["image"]]
        pixels = to_pixel_values(images, image_processor).to(model.device)
        sequences += writer.generate(pixels, synced_gpus=False, **generation).cpu()
    return sequences


def pad_sequences(rows: Sequence[Tensor], pad: int) -> Tensor:
    """Rows of tokens, each as long as it is, as one tensor ``(N, L)``; of no rows ``(0, 0)``."""
    return pad_sequence(list(rows), batch_first=True, padding_value=pad) if rows else torch.empty(0, 0).long()


def caption_logits(model: Any, encoder_hidden_states: Tensor, labels: Tensor) -> Tensor:
    """Logits of given captions in one decoder pass.

    Padding stands behind the end token, where a causal decoder never looks from a real one, so it changes nothing.

    Args:
        model: the captioner; the wrapped one where gradients are wanted.
        encoder_hidden_states: ``(B, S, H)``, one row an image.
        labels: ``(N, L)`` token ids, -100 behind the end; N is a multiple of B, the captions of an image in a row.

    Returns:
        ``(N, L, V)``: position ``l`` scores ``labels[:, l]``.
    """
    captioner = _without_adapters(getattr(model, "module", model))
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
    captioner = _without_adapters(getattr(model, "module", model))
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
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(captioner.parameters())):
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
