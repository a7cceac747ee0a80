"""The tanh approximation of GELU as one torch operation, instead of the seven operations of transformers."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import NewGELUActivation

from hf_distinct.fast import usable


def fuse_gelu(model: nn.Module) -> None:
    """Replace every ``gelu_new`` activation in a model, as in GPT-2, by ``torch.nn.GELU(approximate="tanh")``.

    It is the same function up to rounding. The backward pass stores only its input, where the seven operations store
    four tensors of that size, the largest in a decoder layer. Weights and config do not change, so checkpoints are not
    affected.
    """
    if not usable("gelu", _trial):
        return
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _trial() -> bool:
    hidden = torch.linspace(-6, 6, 100, dtype=torch.float64)
    return torch.allclose(nn.GELU(approximate="tanh")(hidden), NewGELUActivation()(hidden), rtol=0, atol=1e-9)
