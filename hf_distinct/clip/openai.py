"""Read OpenAI's CLIP files without running code: TorchScript archives, and state dicts saved from them.

These files are recognisable: besides the weights they contain three numbers that no other CLIP file has. So it is
known that the weights need QuickGELU, which the tensors alone do not show.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

OWN_NUMBERS = ("input_resolution", "context_length", "vocab_size")


def read_openai_weights(path: str | Path) -> dict[str, Tensor] | None:
    """Read the weights of a checkpoint file in the layout of OpenAI's published CLIP models.

    Args:
        path: a TorchScript archive (OpenAI's ``ViT-B-32.pt``), or a state dict as ``.pt`` or ``.safetensors``.

    Returns:
        The state dict without OpenAI's three numbers; None if the file has another layout.

    Raises:
        pickle.UnpicklingError: if the file contains anything but tensors.
        OSError: if the file cannot be read.
    """
    path = Path(path)
    if path.suffix in (".npz", ".npy"):
        return None
    state: Any
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = set(file.keys())
        state = load_file(path) if names.intersection(OWN_NUMBERS) else None
    elif archive := _torchscript_pickle(path):
        state = _read_torchscript(path, archive)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    if not isinstance(state, dict):
        return None
    state = state.get("state_dict", state)
    if not isinstance(state, dict) or not state.keys() & set(OWN_NUMBERS):
        return None
    return {name: value for name, value in state.items() if name not in OWN_NUMBERS}


def _is_zip(path: Path) -> bool:
    return zipfile.is_zipfile(path)


def _torchscript_pickle(path: Path) -> str | None:
    """Return the name of the pickle in a TorchScript archive; None if the file is not one."""
    if not _is_zip(path):
        return None
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    found = [name for name in names if name.endswith("/constants.pkl")]
    data = found[0].removesuffix("constants.pkl") + "data.pkl" if found else ""
    return data if data in names else None


def _read_torchscript(path: Path, name: str) -> dict[str, Tensor]:
    """Return a TorchScript archive's tensors by name. ``torch.jit.load`` would run the code of its modules."""
    with zipfile.ZipFile(path) as archive:
        root = _TensorsOnly(archive, name.removesuffix("data.pkl")).load()
    return dict(_tensors_in(root, ""))


def _tensors_in(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from _tensors_in(value, f"{prefix}{name}.")


class _Module:
    """A module of the archive: its attributes, without its code."""


class _TensorsOnly(pickle.Unpickler):
    """Unpickles modules as plain objects, and tensors. Anything else that a pickle can call is rejected."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self.archive, self.folder = archive, folder
        super().__init__(io.BytesIO(self.stored("data.pkl")))

    def stored(self, name: str) -> bytes:
        """Read a member of the archive. Compressed ones are rejected: a few bytes could expand to any size."""
        member = self.archive.getinfo(self.folder + name)
        if member.compress_type != zipfile.ZIP_STORED:
            raise pickle.UnpicklingError(f"its {name} is compressed, which torch's weights never are")
        return self.archive.read(member)

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is neither a module nor a tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        _, kind, key, *_ = pid
        dtype = getattr(torch, str(kind).removesuffix("Storage").lower(), None)
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it contains a {kind}, which is not a tensor type")
        return torch.frombuffer(bytearray(self.stored(f"data/{key}")), dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > len(storage):
        raise pickle.UnpicklingError(f"it contains {len(storage)} numbers for a tensor of {math.prod(size)}")
    return storage.as_strided(size, stride, offset).clone()
