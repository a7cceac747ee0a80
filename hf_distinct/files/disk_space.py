"""Room on the disk, looked for before long work instead of missed at its end; and what to do where it ends."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_distinct.text.problems import one_line

# What torch's RuntimeErrors say when a file cannot be written, without a word on why.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container", "iostream error", "Parent directory")


def check_room(folder: str | os.PathLike[str], wanted: int, what: str) -> None:
    """Raise OSError if a folder's disk has less room than is wanted; quotas are not seen.

    Args:
        folder: where it will be written; need not exist yet.
        wanted: bytes.
        what: the subject of the message, as in "The final model and one checkpoint".

    Raises:
        OSError: ENOSPC, with both numbers and the folder.
    """
    place = Path(os.path.abspath(folder))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted:
        sizes = f"will take about {readable_size(wanted)}, and the disk has {readable_size(free)} free"
        advice = "Make room, or choose a folder on another disk"
        raise OSError(errno.ENOSPC, f"No space left: {what} {sizes}. {advice}", str(folder))


def readable_size(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def remedy(error: Exception) -> str | None:
    """What to do about a disk's error, of whatever kind a library makes of it; None if it is none."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return "The disk is full: make room"
    if isinstance(error, RuntimeError) and any(said in str(error) for said in TORCH_CANNOT_WRITE):
        return "Torch does not say why, but the disk may be full: make room"
    return "Mend that" if isinstance(error, (OSError, SafetensorError)) else None


@contextmanager
def named_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Around the writing of a folder: the error of a disk, of whatever kind, is an OSError that names the folder.

    Raises:
        OSError: the folder could not be written. Errors that no disk makes pass as they are.
    """
    try:
        yield
    except Exception as error:
        if (advice := remedy(error)) is None:
            raise
        raise OSError(f"{os.fspath(folder)} could not be written: {one_line(error)}. {advice}.") from error
