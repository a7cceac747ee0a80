"""Digests by which files are known to be what was written: the one place that says whether bytes have changed.

XXH3 finds accidents (a bad disk, a torn copy), at the speed of the disk; it is no defence against a forger.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from hf_distinct.files.fence import Fence

ALGORITHM = "xxh3_128"
BLOCK = 1 << 20


def digest(path: Path) -> str:
    """The digest of a file, as 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """The digest of names, shapes and values."""
    state = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def describe(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and digest of files by their path below a folder, as `changed` compares them; plain JSON."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, ALGORITHM: digest(path)} for path in files
    }


def changed(folder: Path, described: dict[str, Any]) -> str | None:
    """The first file that is not what `describe` saw, and how it differs; None if all are the same."""
    fence = Fence([folder])
    for name, written in described.items():
        # Seals of the first version hold sizes alone.
        size, wanted = (written["bytes"], written[ALGORITHM]) if isinstance(written, dict) else (written, None)
        path = folder / name
        if path not in fence:
            return f"{name} lies outside of {folder}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        try:
            if wanted is not None and digest(path) != wanted:
                return f"{name} is not as it was written: its bytes have changed"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None
