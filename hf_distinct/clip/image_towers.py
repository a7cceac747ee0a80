"""timm image towers with weights from a file, named as in timm or listed in timm's order."""

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

COUNTER = "num_batches_tracked"  # BatchNorm's count of training steps, which not every file has


def load_image_tower(name: str, weights: str | os.PathLike[str] | None = None, **settings: Any) -> nn.Module:
    """Build a timm image model with pretrained weights, in eval mode.

    Args:
        name: timm's name, such as ``"tf_efficientnet_lite0"``.
        weights: a ``.pth`` or ``.safetensors`` file, or ``package:NAME/FILE`` for a file in an installed package. None
            downloads timm's own pretrained weights.
        settings: passed to ``timm.create_model``, such as ``features_only``; not allowed with weights from a file.

    Raises:
        ValueError: if timm has no such model, or the file does not contain its weights.
    """
    if weights is not None and settings:
        raise ValueError(f"Weights from a file need the whole model: leave out {', '.join(settings)}.")
    if not timm.is_model(name):
        raise ValueError(f"timm has no image model {name!r}; timm.list_models() lists all names.")
    if weights is None:
        return timm.create_model(name, pretrained=True, **settings).eval()
    tower = timm.create_model(name)
    load_image_weights(tower, weights)
    return tower.eval()


def load_image_weights(tower: nn.Module, weights: str | os.PathLike[str]) -> None:
    """Load the weights of a whole timm model, classifier included, from a file. No code in the file is run.

    Args:
        tower: the model.
        weights: a ``.pth`` or ``.safetensors`` file with a state dict, or ``package:NAME/FILE``.

    Raises:
        ValueError: if the file cannot be read, or it belongs to another model (see [`weights_in_order`]).
    """
    file = Path(packaged(weights)).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no weights file {str(file)!r}. --image_weights takes a .pth or .safetensors file.")
    try:
        state: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # broken files raise many types of errors
        raise ValueError(f"{file} cannot be read as tensors: {str(error).splitlines()[0]}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{file} contains no state dict: it should map names to tensors.")
    try:
        tower.load_state_dict(weights_in_order(state, tower.state_dict()))
    except ValueError as error:
        raise ValueError(f"{file} does not fit the image tower: {error}") from None


def weights_in_order(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of one implementation of an architecture to the names of another.

    If the names agree, tensors are matched by name. Otherwise they are matched in order, because two implementations
    of an EfficientNet define their layers in the same order. Each pair must have the same shape and the same last part
    of its name; shape alone is not enough, since a BatchNorm's weight, bias, mean and variance have the same shape.

    Args:
        state: the tensors of a file.
        wanted: the state dict of the model.

    Returns:
        A state dict with exactly the names of ``wanted``. BatchNorm step counters are taken from ``wanted``.

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
                f"{their} of shape {tuple(state[their].shape)} is in the place of {name} of shape "
                f"{tuple(wanted[name].shape)}."
            )
    return counters | {name: state[their] for name, their in zip(names, theirs, strict=True)}
