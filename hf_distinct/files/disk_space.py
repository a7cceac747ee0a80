"""Check for free disk space before long work, and explain disk errors."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hf_distinct.text.problems import one_line

# Parts of torch's RuntimeErrors when a file cannot be written; they do not give the cause.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container", "iostream error", "Parent directory")


def check_room(folder: str | os.PathLike[str], wanted: int, what: str) -> None:
    """Raise OSError if a folder's disk has less free space than needed. Quotas are not checked.

    Args:
        folder: where files will be written; it need not exist yet.
        wanted: needed space in bytes.
        what: the subject of the message, as in "The final model and one checkpoint".

    Raises:
        OSError: ENOSPC, with both numbers and the folder.
    """
    place = Path(os.path.abspath(folder))
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < wanted:
        sizes = f"will need about {readable_size(wanted)}, but the disk has only {readable_size(free)} free"
        advice = "Free some space, or choose a folder on another disk"
        raise OSError(errno.ENOSPC, f"No space left: {what} {sizes}. {advice}", str(folder))


def readable_size(size: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def remedy(error: Exception) -> str | None:
    """Return what to do about a disk error, whatever its type; None for other errors."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return "The disk is full: free some space"
    if isinstance(error, RuntimeError) and any(said in str(error) for said in TORCH_CANNOT_WRITE):
        return "Torch does not give the cause, but the disk may be full: free some space"
    return "Fix this" if isinstance(error, (OSError, SafetensorError)) else None


@contextmanager
def named_errors(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Raise a disk error of any type as an OSError that names the folder being written.

    Raises:
        OSError: the folder could not be written. Errors not caused by the disk are raised unchanged.
    """
    try:
        yield
    except Exception as error:
        if (advice := remedy(error)) is None:
            raise
        raise OSError(f"{os.fspath(folder)} could not be written: {one_line(error)}. {advice}.") from error
