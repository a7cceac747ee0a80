"""A GPU where there is none: tensors that are said to lie on one, while the CPU computes their numbers.

So any machine finds out what a GPU would not forgive: an operation whose tensors lie on two devices. And it finds what
makes the program wait for the device.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

import hf_distinct

# A device that torch knows without a driver, and on which it computes nothing by itself.
GPU = torch.device("meta")
PACKAGE = Path(hf_distinct.__file__).parent
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")
# The host needs a number of the device, to return it or to know how large the result is.
WAITING = {
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave",
}  # fmt: skip


class OnGpu(torch.Tensor):
    """A tensor on the pretended GPU; its ``numbers`` are on the CPU."""

    numbers: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> OnGpu:
        found = torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, device=GPU,
        )  # fmt: skip
        found.numbers = numbers
        return found

    def __repr__(self) -> str:
        return f"OnGpu({self.numbers})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendedGpu(TorchDispatchMode):
    """Inside, `GPU` is a device like any other.

    Attributes:
        phase: what is being done, for ``waits``; set it as you like.
        waits: for each phase, the lines of the package that waited for the device, as ``FILE FUNCTION``.

    Raises:
        RuntimeError: an operation gets tensors of both devices, which a GPU refuses.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.waits: dict[str, set[str]] = defaultdict(set)
        self._from_lists, self._autocast = _FromLists(), torch.autocast

    def __enter__(self) -> PretendedGpu:
        self._from_lists.__enter__()
        # No autocast knows the device; everything is in float32.
        torch.autocast = lambda device_type, *args, **kwargs: self._autocast("cpu", *args, **kwargs)  # type: ignore
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.autocast = self._autocast  # type: ignore[misc]
        self._from_lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func, args, kwargs or {}):
            self.waits[self.phase].add(_line())
        return _run(func, args, kwargs or {})


class _FromLists(TorchFunctionMode):
    """`torch.tensor` copies what it has made to the device; of this one it believes that there is nothing to copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _on_gpu(kwargs.get("device"), False):
            return func(*args, **kwargs | {"device": "cpu"}).to(GPU)
        return func(*args, **kwargs)


def _on_gpu(device: Any, otherwise: bool) -> bool:
    return otherwise if device is None else torch.device(device).type == GPU.type


def _waits(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    from_gpu = any(isinstance(each, OnGpu) for each in tree_iter((args, kwargs)))
    if func is aten._to_copy.default:
        return from_gpu != _on_gpu(kwargs.get("device"), from_gpu) and not kwargs.get("non_blocking")
    if func is aten.copy_.default:
        return isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu) and not any(args[2:])
    name = func.name().split(".")[0]
    by_mask = name in INDEXING and any(each is not None and each.dtype == torch.bool for each in args[1])
    return from_gpu and (by_mask or name in WAITING)


def _line() -> str:
    """File and function of the package that runs."""
    frame: Any = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)} {frame.f_code.co_name.strip('<>')}"
        frame = frame.f_back
    return "another's"


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
    on_gpu = [each for each in tensors if isinstance(each, OnGpu)]
    # A scalar may come from the CPU, and so may an index.
    others = [each for each in tensors if each.dim() and not isinstance(each, OnGpu)]
    if on_gpu and others and func not in COPIES and func.name().split(".")[0] not in INDEXING:
        shapes = {place: [tuple(each.shape) for each in some] for place, some in (("GPU", on_gpu), ("CPU", others))}
        raise RuntimeError(f"{func.name()} of tensors on two devices: {shapes}")
    result_on_gpu = _on_gpu(kwargs.get("device"), bool(on_gpu))
    if "device" in kwargs:
        kwargs = kwargs | {"device": torch.device("cpu")}
    found = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
    if not result_on_gpu:
        return found
    itself = {id(each.numbers): each for each in on_gpu}  # of what works in place
    return tree_map(lambda each: itself.get(id(each), OnGpu(each)) if isinstance(each, torch.Tensor) else each, found)


def _numbers(each: Any) -> Any:
    return each.numbers if isinstance(each, OnGpu) else each
