"""Long work in numbered parts, each a file that is there whole or not at all: a killed run goes on where it was."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_distinct.files.seals import ALGORITHM, digest_of_tensors

UNFINISHED = ".unfinished"
OF_ALL = f"{ALGORITHM} of all"
"""The tensor that holds the digest of the others and of the metadata."""


class Parts:
    """Numbered safetensors files in a folder.

    Several processes, of one run or of several, may write at once: a part appears under its name in one move, and
    whoever writes it writes the same.

    Args:
        folder: Where they lie; made with the first part.
        count: How many there will be, numbered from 0.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count

    def path(self, number: int) -> Path:
        """Return where part `number` lies, or will."""
        return self.folder / f"{number:06d}.safetensors"

    def missing(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Return which of the numbers (by default all) are not there yet."""
        # One listing instead of a look at each: a folder may hold ten thousand.
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [
            each for each in (range(self.count) if numbers is None else numbers) if self.path(each).name not in there
        ]

    def write(self, number: int, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        """Write a part, whole or not at all."""
        write_tensors(self.path(number), tensors, metadata)

    def read(self, number: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Read a part: its tensors and its metadata.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: The file is broken; it is removed, so that the part is missing from now on.
        """
        try:
            return read_tensors(self.path(number))
        except ValueError:
            self.path(number).unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Remove all parts, and what killed writers left."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, scratch: Path | None = None
) -> None:
    """Write a safetensors file with a digest of what it holds, whole or not at all; see `written_whole`."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # A tensor, since safetensors writes several metadata in any order, and equal contents are to be equal files.
    tensors[OF_ALL] = torch.tensor(list(bytes.fromhex(digest_of_tensors(tensors, metadata))), dtype=torch.uint8)
    with written_whole(path, scratch) as temporary:
        save_file(tensors, temporary, metadata=metadata)


@contextmanager
def written_whole(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Give a file its name only when all of it is written, and is on the disk.

    Args:
        path: The name; its folder is made if needed.
        scratch: Folder, on the same disk, in which it grows; the file's own by default. What a killed writer leaves
            stays there.

    Yields:
        Where to write.

    Raises:
        OSError: What keeps it from being written, with the file's name.
    """
    folder = scratch or path.parent
    for each in (folder, path.parent):
        each.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except FileNotFoundError:  # a faster run has taken the folder away, which callers expect
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(f"{str(path)!r} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Give files their names in a folder only when all of them are written, and are on the disk.

    A writer that is killed, or finds no room, leaves the files that stand there as they were. Files of other names
    stay. One writer at a time.

    Args:
        folder: Made if needed.

    Yields:
        The folder to write to, below it.
    """
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # what a killed writer left
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        written = [path for path in sorted(unfinished.rglob("*")) if path.is_file()]
        for path in written:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path in written:
            place = folder / path.relative_to(unfinished)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no safetensors file, a broken one, or its bytes have changed; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        # A header that safetensors reads may still name a type that torch has not, or have no end.
        raise ValueError(f"{str(path)!r} is broken: {error}") from error
    of_tensors = tensors.pop(ALGORITHM, None)  # of earlier versions; those of the first have none
    of_all = tensors.pop(OF_ALL, None)
    wanted, found = (of_tensors, digest_of_tensors(tensors)) if of_all is None else (
        of_all, digest_of_tensors(tensors, metadata)
    )
    if wanted is not None and (wanted.dtype != torch.uint8 or found != _hex(wanted)):
        raise ValueError(f"{str(path)!r} is broken: its bytes have changed since it was written")
    return tensors, metadata


def _hex(digest: Tensor) -> str:
    return bytes(digest.flatten().tolist()).hex()


def this_process() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
