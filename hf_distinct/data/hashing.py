"""A hash of text that is the same in every process, on every machine and in every Python version."""

from __future__ import annotations

import hashlib


def stable_hash(text: str) -> int:
    """Hash a text to a signed 64-bit integer that fits a `torch.int64` tensor.

    Python's own `hash` differs from process to process, so that two ranks could not agree on an image id. Two
    different texts among a million collide with a probability of about 3e-8.

    Args:
        text: Any string, also one with lone surrogates.

    Returns:
        The first 8 bytes of BLAKE2b over the UTF-8 text, read as a big-endian signed integer.
    """
    # "surrogatepass": JSON may hold lone surrogates, and a hash must not be the place that fails on them.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
