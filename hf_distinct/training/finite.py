"""Check losses, gradients and weights for NaN and infinity, so that they are never saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

REMEDY = "Lower learning_rate, add warmup_steps, or set max_grad_norm"
"""Remedies for divergence, used in all such errors."""

LEAST_SCALE = 2.0**-10
"""Below this loss scale, fp16 gradients did not overflow: they are NaN at any scale."""


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """Return the name of the first tensor with NaN or infinity; None if all are finite. None values are skipped."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor is not None and tensor.is_floating_point()]
    if not named or bool(torch.stack([tensor.isfinite().all() for _, tensor in named]).all()):  # one GPU sync
        return None
    return next(name for name, tensor in named if not bool(tensor.isfinite().all()))


def gradient_problems(model: nn.Module) -> Iterator[str]:
    """Yield a message if a gradient is not finite, which can happen with a finite loss."""
    named = [(name, each.grad) for name, each in model.named_parameters() if each.grad is not None]
    sums = [gradient.sum(dtype=torch.float32) for _, gradient in named if gradient is not None]
    # This takes a tenth of the time of a look at each value. A sum of finite values may overflow, so look then.
    suspicious = bool(sums) and not bool(torch.stack(sums).isfinite().all())
    if suspicious and (name := not_finite(named)):
        yield f"The gradient of {name} is NaN or infinite."


def scaler_problems(scaler: Any) -> Iterator[str]:
    """Yield a message if no fp16 loss scale gives finite gradients; the scaler itself would skip steps forever."""
    if scaler.get_scale() < LEAST_SCALE:
        yield "The gradient is NaN or infinite at every scale of the loss."


def loss_problems(loss: Tensor) -> Iterator[str]:
    """Yield a message if the loss is not finite."""
    if not bool(loss.detach().isfinite().all()):
        yield f"The loss is {loss.detach().mean().item()}."


def step_problems(loss: Tensor, model: nn.Module) -> Iterator[str]:
    """Yield messages about a loss or gradient that is not finite; call it after backward and before the optimiser."""
    problems = list(loss_problems(loss))
    yield from problems or gradient_problems(model)


def weight_problems(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[str]:
    """Yield a message if weights are not finite; under ZeRO-3 each process checks its own part.

    Args:
        model: the model; its ``state_dict`` is checked.
        dtype: the type in which floating-point weights are saved, if it differs: values that are finite in single
            precision may be infinite in half precision.
    """
    parts = ((name, each.ds_tensor) for name, each in model.named_parameters() if hasattr(each, "ds_tensor"))
    named = chain(model.state_dict().items(), parts)
    if name := not_finite((name, each.to(dtype) if each.is_floating_point() else each) for name, each in named):
        yield f"The weights {name} are NaN or infinite{f' in {dtype}' if dtype else ''}."
