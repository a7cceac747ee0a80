"""The tanh approximation of GELU as one operation of torch, instead of the seven that transformers writes it in."""

from __future__ import annotations

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_gelu(model: nn.Module) -> None:
    """Replace every ``gelu_new`` in a model, as GPT-2 has them, by ``torch.nn.GELU(approximate="tanh")``.

    It is the same function up to the last bits of rounding. For the backward pass it keeps its input alone, where the
    seven operations keep four tensors of that size, the widest of a decoder's layer. Weights and config stay as they
    are, so that a checkpoint does not know of it.
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
