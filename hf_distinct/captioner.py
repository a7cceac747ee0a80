"""The captioner: its special tokens, its encoded images, and the log-probabilities of given captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_peft_available

from hf_distinct.families import CAPTIONERS, family_of, without_adapters
from hf_distinct.fast.packing import Packing, may_pack
from hf_distinct.fast.shared_cross_attention import share_images
from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.text.problems import one_line


def captioner_in(model: Any, accelerator: Accelerator) -> PreTrainedModel:
    """Return the captioner without the wrappers of Accelerate, DeepSpeed and peft; adapters stay in its layers."""
    if isinstance(model, CAPTIONERS):  # faster: Accelerate would inspect every module
        return model
    return without_adapters(accelerator.unwrap_model(model))


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


def token_id(model: PreTrainedModel, name: str) -> int:
    """Return the id of a special token, as captions of this model use it.

    Args:
        model: the captioner.
        name: ``decoder_start_token_id``, ``eos_token_id`` or ``pad_token_id``.
    """
    return family_of(model).token_ids(name)[0]


def end_ids(model: PreTrainedModel) -> list[int]:
    """Return the ids of all tokens that end a caption."""
    return family_of(model).token_ids("eos_token_id")


def encode(encoder: Any, pixel_values: Tensor, accelerator: Accelerator) -> Tensor:
    """Encode images.

    This call is not part of the forward pass that Accelerate wraps, so it enters autocast itself. As in that forward
    pass, half-precision outputs are converted to float32.

    Args:
        encoder: the captioner's vision encoder.
        pixel_values: ``(B, 3, H, W)``, or images that are already encoded, ``(B, S, H)``, which are returned
            unchanged.
        accelerator: sets the precision.

    Returns:
        Hidden states ``(B, S, H)``.
    """
    if pixel_values.dim() == 3:
        return pixel_values
    with accelerator.autocast():
        hidden = encoder(pixel_values).last_hidden_state
    return hidden.float() if accelerator.native_amp else hidden


def caption_logits(model: Any, encoder_hidden_states: Tensor, labels: Tensor) -> Tensor:
    """Compute the logits of given captions in one decoder pass.

    Padding comes after the end token and a causal decoder never attends to later tokens, so padding has no effect.

    Args:
        model: the captioner; pass the wrapped model if you need gradients.
        encoder_hidden_states: ``(B, S, H)``, one row per image.
        labels: ``(N, L)`` token ids, -100 after the end token. N is a multiple of B; captions of an image are
            adjacent.

    Returns:
        ``(N, L, V)``: position ``l`` holds the logits of ``labels[:, l]``.
    """
    family = family_of(getattr(model, "module", model))
    if not share_images(family.decoder):
        encoder_hidden_states = encoder_hidden_states.repeat_interleave(
            len(labels) // len(encoder_hidden_states), dim=0
        )
    return family.logits(model, encoder_hidden_states, _inputs(family.model, labels))


def token_logits(model: Any, encoder_hidden_states: Tensor, labels: Tensor) -> Tensor:
    """Compute the logits of real tokens only; arguments as for [`caption_logits`].

    Padded positions are skipped if the decoder is GPT-2 with SDPA attention and gradient checkpointing is off.
    Otherwise they are computed and dropped.

    Returns:
        ``(T, V)``, in the order of ``labels[labels != -100]``.
    """
    family = family_of(getattr(model, "module", model))
    decoder, real = family.decoder, labels != IGNORED_LABEL
    packing = Packing(real)
    again = torch.is_grad_enabled() and bool(checkpointed_layers(decoder))
    torchs_own = decoder.config._attn_implementation == "sdpa"
    if again or not torchs_own or not len(packing.places) or not share_images(decoder) or not may_pack():
        return caption_logits(model, encoder_hidden_states, labels)[real]
    inputs = _inputs(family.model, labels)[real].unsqueeze(1)
    with packing.in_passes_of(decoder):
        logits = family.logits(model, encoder_hidden_states, inputs, decoder_position_ids=packing.positions)
    return logits.squeeze(1)


def _inputs(captioner: PreTrainedModel, labels: Tensor) -> Tensor:
    """Return the decoder's input ids for the labels: shifted right, with the start token first."""
    inputs = labels.masked_fill(labels == IGNORED_LABEL, token_id(captioner, "pad_token_id")).roll(1, dims=1)
    inputs[:, 0] = token_id(captioner, "decoder_start_token_id")
    return inputs


def checkpointed_layers(model: nn.Module) -> list[Any]:
    """Return the layers for which ``gradient_checkpointing_enable`` was called."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def checkpointing(model: nn.Module) -> Iterator[None]:
    """Make checkpointed layers recompute their activations in eval mode, too.

    transformers checkpoints layers in train mode only, and silently keeps all activations in eval mode. The training
    step runs in eval mode, because rollouts are scored without dropout. So each layer's ``training`` flag is set when
    transformers checks it, and cleared while the layer runs. Submodules are not changed. If gradient checkpointing is
    not enabled, this does nothing.
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
