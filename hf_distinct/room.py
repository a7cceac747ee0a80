"""Room on the disk, looked for before long work instead of missed at its end."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path


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
