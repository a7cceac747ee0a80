"""A hash of text that is the same in every process, on every machine and in every Python version."""

from __future__ import annotations

import hashlib


def stable_hash(text: str) -> int:
    """Hash a text to a signed 64-bit integer that fits a `torch.int64` tensor.

    Python's `hash` differs between processes, so two ranks could not agree on an image id. Among a million different
    texts, the probability of a collision is about 3e-8.

    Args:
        text: any string, including lone surrogates.

    Returns:
        The first 8 bytes of BLAKE2b of the UTF-8 text, as a big-endian signed integer.
    """
    # "surrogatepass": JSON may contain lone surrogates, which should not fail here.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
