"""Use oneDNN on CPUs for matrix products with few rows, as in token-by-token generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_distinct.fast import usable

WIDE = 2**18  # for layers with at most this many weights, a call of oneDNN costs more than it saves


@contextmanager
def narrow_products(model: nn.Module) -> Iterator[None]:
    """Let the wide linear layers of a model multiply by oneDNN inside this context: on CPU, float32, no gradients.

    Products are the same up to rounding. torch uses MKL for float32, which prepares the weights again in each call and
    is slow for many weights and few rows; oneDNN, which is part of torch, is about twice as fast (on an AMD EPYC).
    """
    layers: list[Any] = []
    if not torch.is_autocast_enabled("cpu") and usable("narrow_products", _trial):
        layers = [layer for layer in model.modules() if _is_wide(layer)]
    for layer in layers:
        layer.forward = partial(_multiply, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_wide(layer: Any) -> bool:
    if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):  # patched by someone else
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > WIDE


def _multiply(layer: Any, hidden: Tensor) -> Tensor:
    """Map ``(..., in)`` to ``(..., out)``."""
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight  # (out, in)
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, layer.bias, "none", [], "")


def _trial() -> bool:
    hidden, layer = torch.randn(3, 5, device="cpu"), nn.Linear(5, 7, device="cpu", dtype=torch.float32)
    return torch.allclose(_multiply(layer, hidden.float()), layer(hidden.float()), atol=1e-5)
