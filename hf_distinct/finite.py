"""What is not finite is never saved as good: losses, gradients and weights are looked at before anything is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; None if all are finite. None's are passed over."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor is not None and tensor.is_floating_point()]
    if not named or bool(torch.stack([tensor.isfinite().all() for _, tensor in named]).all()):  # one wait for a GPU
        return None
    return next(name for name, tensor in named if not bool(tensor.isfinite().all()))


def step_problems(loss: Tensor, model: nn.Module) -> Iterator[str]:
    """What keeps a step from being taken, after its backward pass and before the optimiser: a loss or a gradient."""
    if not bool(loss.detach().isfinite().all()):
        yield f"The loss is {loss.detach().mean().item()}."
    elif name := not_finite((name, parameter.grad) for name, parameter in model.named_parameters()):
        yield f"The gradient of {name} is NaN or infinite."


def weight_problems(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[str]:
    """What keeps a model from being saved; ``dtype``: that in which its floating-point weights are saved, if another.

    What is finite in single precision may be infinite in half precision.
    """
    named = model.state_dict().items()
    if name := not_finite((name, each.to(dtype) if each.is_floating_point() else each) for name, each in named):
        yield f"The weights {name} are NaN or infinite{f' in {dtype}' if dtype else ''}."
