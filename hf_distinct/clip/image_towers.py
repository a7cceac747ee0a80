"""Image towers of timm with weights from a file, under timm's names or in timm's order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_distinct.files.model_names import packaged

COUNTER = "num_batches_tracked"  # of BatchNorm: counts training steps, and not every file has it


def load_image_tower(name: str, weights: str | os.PathLike[str] | None = None, **settings: Any) -> nn.Module:
    """Build an image model of timm with pretrained weights, in eval mode.

    Args:
        name: timm's name, such as ``"tf_efficientnet_lite0"``.
        weights: a ``.pth`` or ``.safetensors`` file, or ``package:NAME/FILE`` for one in an installed package. None:
            timm's own pretrained weights, which it downloads.
        settings: passed on to ``timm.create_model``, such as ``features_only``; not for weights from a file.

    Raises:
        ValueError: if timm knows no such model, or the file does not hold its weights.
    """
    if weights is not None and settings:
        raise ValueError(f"Weights from a file are those of a whole model: leave out {', '.join(settings)}.")
    if not timm.is_model(name):
        raise ValueError(f"timm has no image model {name!r}; timm.list_models() has their names.")
    if weights is None:
        return timm.create_model(name, pretrained=True, **settings).eval()
    tower = timm.create_model(name)
    load_image_weights(tower, weights)
    return tower.eval()


def load_image_weights(tower: nn.Module, weights: str | os.PathLike[str]) -> None:
    """Fill a whole timm model, its classifier included, from a file of tensors. No code in the file is run.

    Args:
        tower: the model.
        weights: a ``.pth`` or ``.safetensors`` file with a state dict, or ``package:NAME/FILE``.

    Raises:
        ValueError: if the file cannot be read, or [`weights_in_order`] finds that it is of another model.
    """
    file = Path(packaged(weights)).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no weights file {str(file)!r}. --image_weights takes a .pth or .safetensors file.")
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # broken files raise errors of a dozen kinds
        raise ValueError(f"{file} cannot be read as tensors: {str(error).splitlines()[0]}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} holds no state dict: it should map names to tensors.")
    try:
        tower.load_state_dict(weights_in_order(state, tower.state_dict()))
    except ValueError as error:
        raise ValueError(f"{file} does not fit the image tower: {error}") from None


def weights_in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of one implementation of an architecture the names of another.

    If the names agree, they decide. If not, the tensors are taken in order, as two implementations of an EfficientNet
    define their layers in the same order. Each must then agree in shape and in the last part of its name: of a
    BatchNorm, weight, bias, mean and variance have the same shape.

    Args:
        state: what a file holds.
        wanted: the state dict of the model.

    Returns:
        A state dict with exactly the names of ``wanted``. BatchNorm's counters of steps are those of ``wanted``.

    Raises:
        ValueError: if the number of tensors, a shape or the last part of a name differs.
    """
    counters = {name: value for name, value in wanted.items() if name.endswith(COUNTER)}
    names = [name for name in wanted if name not in counters]
    theirs = [name for name in state if not name.endswith(COUNTER)]
    if set(names) == set(theirs):
        theirs = names
    if len(names) != len(theirs):
        raise ValueError(f"it has {len(theirs)} tensors, the tower {len(names)}.")
    for name, their in zip(names, theirs, strict=True):
        if wanted[name].shape != state[their].shape or name.rpartition(".")[2] != their.rpartition(".")[2]:
            raise ValueError(
                f"{their} of shape {tuple(state[their].shape)} stands where the tower has {name} of shape "
                f"{tuple(wanted[name].shape)}."
            )
    return counters | {name: state[their] for name, their in zip(names, theirs, strict=True)}
