"""Lock a run's folder, so that a second run cannot write into it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)


@dataclass
class _Claim:
    """An open, locked folder, and how often this process has claimed it."""

    descriptor: int
    holders: int = 1


_claims: dict[str, _Claim] = {}


def claim(folder: str | os.PathLike[str]) -> None:
    """Lock a folder for this process until `release`, or until the process ends in any way.

    The folder itself is locked (`flock`), so no lock file is left. A process may claim a folder several times. File
    systems without locks are not protected.

    Raises:
        ValueError: another process has locked the folder.
        OSError: the folder cannot be created.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    place = os.path.realpath(folder)
    if place in _claims:
        _claims[place].holders += 1
        return
    if fcntl is None:
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"output_dir {folder}: another run is using this folder. Wait until it ends, or set another output_dir."
        ) from error
    except OSError as error:
        os.close(descriptor)
        logger.debug("%s cannot be locked: %s", folder, error)
        return
    _claims[place] = _Claim(descriptor)


def release(folder: str | os.PathLike[str]) -> None:
    """Undo one `claim`; the last one unlocks the folder."""
    place = os.path.realpath(folder)
    held = _claims.get(place)
    if held is None:
        return
    held.holders -= 1
    if not held.holders:
        os.close(_claims.pop(place).descriptor)
