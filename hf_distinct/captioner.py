"""What a captioner is: its special tokens, encoded images, and log-probabilities of given captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor, nn
from transformers import VisionEncoderDecoderModel, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import is_peft_available

from hf_distinct.fast.packing import Packing, may_pack
from hf_distinct.fast.shared_cross_attention import share_images
from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.text.problems import one_line


def captioner_in(model: Any, accelerator: Accelerator) -> VisionEncoderDecoderModel:
    """The captioner itself, out of the wrappers of Accelerate, DeepSpeed and peft; adapters stay in its layers."""
    if isinstance(model, VisionEncoderDecoderModel):  # Accelerate would ask each of its modules
        return model
    return without_adapters(accelerator.unwrap_model(model))


def without_adapters(model: Any) -> Any:
    """The model that peft gave adapters; any other model as it is."""
    # peft.PeftModel, without a need for peft.
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def with_adapters(model: Any, peft_config: Any, seed: int) -> Any:
    """Wrap a captioner with ``peft.get_peft_model``: its own weights are frozen, the new adapters are trained.

    Args:
        model: The captioner.
        peft_config: Any ``peft.PeftConfig``, such as a ``LoraConfig``.
        seed: Seed of the adapters' initial weights, so that they are the same in all processes and in a resumed run.

    Raises:
        ValueError: peft is not installed, ``peft_config`` does not fit, or the model has adapters already.
    """
    if not is_peft_available():
        raise ValueError("peft_config needs the package peft: pip install peft")
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ValueError(
            f"peft_config should be a peft.PeftConfig, such as a LoraConfig, not a {type(peft_config).__name__}."
        )
    if without_adapters(model) is not model:
        raise ValueError(
            "The model has adapters already: leave out peft_config to train them, or pass model.merge_and_unload() "
            "to train new ones."
        )
    set_seed(seed)
    try:
        return get_peft_model(model, peft_config)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"peft_config does not fit the captioner: {one_line(error)}") from error


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
    if again or not torchs_own or not len(packing.places) or not share_images(decoder) or not may_pack():
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



def checkpointed_layers(model: nn.Module) -> list[Any]:
    """The layers for which ``gradient_checkpointing_enable`` was called."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Inside, a model's checkpointed layers recompute their activations.

    The layers of transformers do so in train mode only, and would in silence keep everything in eval mode, which the
    step needs: the policy that is scored has no dropout. So each layer is in train mode while it is asked, and in eval
    mode while it runs; the modules within it stay as they are. Where nothing was enabled, nothing happens.
    """
    layers = [layer for layer in checkpointed_layers(model) if not layer.training]
    functions = [layer._gradient_checkpointing_func for layer in layers]
    for layer, function in zip(layers, functions, strict=True):
        layer.training, layer._gradient_checkpointing_func = True, _run_in_eval(layer, function)
    try:
        yield
    finally:
        for layer, function in zip(layers, functions, strict=True):
            layer.training, layer._gradient_checkpointing_func = False, function


def _run_in_eval(layer: nn.Module, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        layer.training = False
        try:
            return checkpoint(*args)
        finally:
            layer.training = True

    return run
