"""Digests of files, to detect changed bytes.

XXH3 detects accidents (a bad disk, an incomplete copy) at the speed of the disk. It does not protect against forgery.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from hf_distinct.files.fence import Fence

ALGORITHM = "xxh3_128"
BLOCK = 1 << 20
DIGEST = "digest"
"""The key under which `sealed` stores the digest of a JSON object."""


def digest(path: Path) -> str:
    """Return the digest of a file, as 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def digest_of_tensors(tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Return the digest of the names, dtypes, shapes and values of tensors, and of metadata."""
    state = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode() if metadata else b"")
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Add to a JSON object a digest of its content, or replace an earlier one."""
    return value | {DIGEST: _digest_of_json(value)}


def altered(value: dict[str, Any], first: Collection[str]) -> str | None:
    """Return why an object is not what `sealed` returned; None if it is unchanged.

    Args:
        value: the content of a JSON file.
        first: the keys of the first version of the file, which had no digest.
    """
    if value.get(DIGEST) == _digest_of_json(value):
        return None
    return None if set(value) == set(first) else "its bytes have changed since it was written"


def _digest_of_json(value: dict[str, Any]) -> str:
    others = {name: each for name, each in value.items() if name != DIGEST}
    return xxhash.xxh3_128(json.dumps(others, sort_keys=True).encode()).hexdigest()


def describe(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size and digest of files by relative path, for `changed`, as JSON values."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, ALGORITHM: digest(path)} for path in files
    }


def changed(folder: Path, described: dict[str, Any]) -> str | None:
    """Return the first file that differs from what `describe` recorded, and how; None if none does."""
    fence = Fence([folder])
    for name, written in described.items():
        # The first version recorded sizes only.
        size, wanted = written, None
        if isinstance(written, dict):
            if set(written) != {"bytes", ALGORITHM}:
                return f"the digest of {name} is missing"
            size, wanted = written["bytes"], written[ALGORITHM]
        path = folder / name
        if path not in fence:
            return f"{name} is outside of {folder}"
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        try:
            if wanted is not None and digest(path) != wanted:
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} cannot be read: {error}"
    return None
