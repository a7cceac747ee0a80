"""Matrix products of few rows, as writing captions token by token asks for them, by oneDNN on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_distinct.fast import usable

WIDE = 2**18  # weights of a layer: with as many or fewer, a call of oneDNN costs more than it saves


@contextmanager
def narrow_products(model: nn.Module) -> Iterator[None]:
    """Let the wide layers of a model multiply by oneDNN for a while, on a CPU and in float32, without gradients.

    A product is what it was, up to rounding. torch gives those in float32 to MKL, which prepares the weights anew for
    each call and so is slow where they are many and the rows few; oneDNN, which torch carries as well, is about twice
    as fast there (`recipes/benchmarks/step.py --size base`, on an AMD EPYC).
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
    if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):  # somebody else's
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > WIDE


def _multiply(layer: Any, hidden: Tensor) -> Tensor:
    """``(..., in)`` become ``(..., out)``."""
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight  # (out, in)
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, layer.bias, "none", [], "")


def _trial() -> bool:
    hidden, layer = torch.randn(3, 5, device="cpu"), nn.Linear(5, 7, device="cpu", dtype=torch.float32)
    return torch.allclose(_multiply(layer, hidden.float()), layer(hidden.float()), atol=1e-5)
