"""Gradient checkpointing of a model in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


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
