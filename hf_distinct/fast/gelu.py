"""The tanh approximation of GELU as one operation of torch, instead of the seven that transformers writes it in."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import NewGELUActivation

from hf_distinct.fast import usable


def fuse_gelu(model: nn.Module) -> None:
    """Replace every ``gelu_new`` in a model, as GPT-2 has them, by ``torch.nn.GELU(approximate="tanh")``.

    It is the same function up to the last bits of rounding. For the backward pass it keeps its input alone, where the
    seven operations keep four tensors of that size, the widest of a decoder's layer. Weights and config stay as they
    are, so that a checkpoint does not know of it.
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
