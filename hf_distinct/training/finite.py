"""What is not finite is never saved as good: losses, gradients and weights are looked at before anything is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

REMEDY = "Lower learning_rate, add warmup_steps, or set max_grad_norm"
"""What helps against divergence, as every error of this kind says it."""

LEAST_SCALE = 2.0**-10
"""Below this scale of the loss, fp16 gradients did not overflow: they are NaN at any scale."""


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; None if all are finite. None's are passed over."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor is not None and tensor.is_floating_point()]
    if not named or bool(torch.stack([tensor.isfinite().all() for _, tensor in named]).all()):  # one wait for a GPU
        return None
    return next(name for name, tensor in named if not bool(tensor.isfinite().all()))


def gradient_problems(model: nn.Module) -> Iterator[str]:
    """What keeps a step from being taken after its backward pass, though its loss is finite."""
    named = [(name, each.grad) for name, each in model.named_parameters() if each.grad is not None]
    sums = [gradient.sum(dtype=torch.float32) for _, gradient in named if gradient is not None]
    # A tenth of the time that it takes to look at each value. A sum of finite values may be infinite, so look then.
    suspicious = bool(sums) and not bool(torch.stack(sums).isfinite().all())
    if suspicious and (name := not_finite(named)):
        yield f"The gradient of {name} is NaN or infinite."


def scaler_problems(scaler: Any) -> Iterator[str]:
    """What keeps fp16 from ever taking a step again: a scaler leaves steps out by itself, but would do so for ever."""
    if scaler.get_scale() < LEAST_SCALE:
        yield "The gradient is NaN or infinite at every scale of the loss."


def loss_problems(loss: Tensor) -> Iterator[str]:
    """What keeps a step from being taken: its loss."""
    if not bool(loss.detach().isfinite().all()):
        yield f"The loss is {loss.detach().mean().item()}."


def step_problems(loss: Tensor, model: nn.Module) -> Iterator[str]:
    """What keeps a step from being taken, after its backward pass and before the optimiser: a loss or a gradient."""
    problems = list(loss_problems(loss))
    yield from problems or gradient_problems(model)


def weight_problems(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[str]:
    """What keeps a model from being saved; under ZeRO-3, in this process's part of it.

    Args:
        model: what its ``state_dict`` holds is looked at.
        dtype: the type that floating-point weights are saved in, if it is another than theirs: what is finite in
            single precision may be infinite in half precision.
    """
    parts = ((name, each.ds_tensor) for name, each in model.named_parameters() if hasattr(each, "ds_tensor"))
    named = chain(model.state_dict().items(), parts)
    if name := not_finite((name, each.to(dtype) if each.is_floating_point() else each) for name, each in named):
        yield f"The weights {name} are NaN or infinite{f' in {dtype}' if dtype else ''}."
