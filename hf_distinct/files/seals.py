"""Digests by which files are known to be what was written: the one place that says whether bytes have changed.

XXH3 finds accidents (a bad disk, a torn copy), at the speed of the disk; it is no defence against a forger.
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
"""The key of a JSON object under which `sealed` puts a digest of all the others."""


def digest(path: Path) -> str:
    """The digest of a file, as 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()


def digest_of_tensors(tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """The digest of names, shapes and values, and of what is said beside them."""
    state = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode() if metadata else b"")
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of itself, in the place of an earlier one."""
    return value | {DIGEST: _digest_of_json(value)}


def altered(value: dict[str, Any], first: Collection[str]) -> str | None:
    """The reason why an object is not what `sealed` made; None if it is.

    Args:
        value: what a JSON file holds.
        first: the keys of the first version of such a file, which has no digest.
    """
    if value.get(DIGEST) == _digest_of_json(value):
        return None
    return None if set(value) == set(first) else "its bytes have changed since it was written"


def _digest_of_json(value: dict[str, Any]) -> str:
    others = {name: each for name, each in value.items() if name != DIGEST}
    return xxhash.xxh3_128(json.dumps(others, sort_keys=True).encode()).hexdigest()


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
        size, wanted = written, None
        if isinstance(written, dict):
            if set(written) != {"bytes", ALGORITHM}:
                return f"the digest of {name} is missing"
            size, wanted = written["bytes"], written[ALGORITHM]
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
