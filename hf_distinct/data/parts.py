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
    """Write a safetensors file with a digest of its tensors, whole or not at all; see `written_whole`."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # A tensor, since safetensors writes several metadata in any order, and equal contents are to be equal files.
    tensors[ALGORITHM] = torch.tensor(list(bytes.fromhex(digest_of_tensors(tensors))), dtype=torch.uint8)
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
    wanted = tensors.pop(ALGORITHM, None)  # files of the first version have none
    if wanted is not None and (wanted.dtype != torch.uint8 or digest_of_tensors(tensors) != _hex(wanted)):
        raise ValueError(f"{str(path)!r} is broken: its bytes have changed since it was written")
    return tensors, metadata


def _hex(digest: Tensor) -> str:
    return bytes(digest.flatten().tolist()).hex()


def this_process() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
