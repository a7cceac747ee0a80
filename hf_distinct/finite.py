"""Whether gradients and weights are finite: what is not is never taken for a step, and never saved."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

REMEDY = "Lower learning_rate, add warmup_steps, or set max_grad_norm"
"""What helps against divergence, as every error of this kind says it."""


def gradients_are_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether no element of any gradient is NaN or infinite; waits for the device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # The largest absolute value, unlike the sum of squares, does not overflow.
    return not gradients or bool(get_total_norm(gradients, norm_type=float("inf")).isfinite())


def weights_that_are_not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinite values; under ZeRO-3, in this process's part of them."""
    parts = {name: getattr(each, "ds_tensor", each).detach() for name, each in model.named_parameters()}
    if not parts:
        return []
    whole = torch.stack([_is_finite(part) for part in parts.values()]).tolist()  # one wait for the device
    return [name for name, finite in zip(parts, whole, strict=True) if not finite]


def _is_finite(values: Tensor) -> Tensor:
    # A sum would overflow, and `isfinite().all()` needs a copy of the tensor's shape.
    return values.abs().amax().isfinite() if values.numel() else torch.tensor(True, device=values.device)
