"""Long work in numbered parts. Each part is written completely or not at all, so that a killed run can resume."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_distinct.files.seals import ALGORITHM, digest_of_tensors

UNFINISHED = ".unfinished"
CLAIM, CLAIM_SECONDS = ".claim-", 60
OF_ALL = f"{ALGORITHM} of all"
"""Name of the tensor with the digest of all other tensors and the metadata."""


class Parts:
    """Numbered safetensors files in a folder.

    Several processes, of one run or of several, may write at the same time: a file is moved into place when it is
    complete, and all of them write the same content.

    Args:
        folder: the folder of the files; created with the first part.
        count: the number of parts; numbering starts at 0.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count

    def path(self, number: int) -> Path:
        """Return the path of part `number`, whether it exists or not."""
        return self.folder / f"{number:06d}.safetensors"

    def missing(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Return the numbers (by default of all parts) whose files do not exist yet."""
        # One listing is faster than a check per file: a folder may contain ten thousand.
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        return [
            each for each in (range(self.count) if numbers is None else numbers) if self.path(each).name not in there
        ]

    def claim(self, numbers: Iterable[int]) -> None:
        """Tell other processes that this one is at work on parts; to be repeated within `CLAIM_SECONDS`."""
        if this_process()[1] > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                self._claim(number).touch()

    def claimed_by_others(self) -> set[int]:
        """Return the parts that other processes of this run are at work on."""
        claimed, own = set(), f"{CLAIM}{this_process()[0]}"
        for name in os.listdir(self.folder) if self.folder.is_dir() else []:
            number, claim, _ = name.partition(CLAIM)
            if claim and not name.endswith(own):
                with suppress(FileNotFoundError):
                    if time.time() - (self.folder / name).stat().st_mtime < CLAIM_SECONDS:
                        claimed.add(int(number))
        return claimed

    def _claim(self, number: int) -> Path:
        return self.folder / f"{number:06d}{CLAIM}{this_process()[0]}"

    def write(self, number: int, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        """Write a part, completely or not at all."""
        write_tensors(self.path(number), tensors, metadata)
        self._claim(number).unlink(missing_ok=True)

    def read(self, number: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Read a part: its tensors and its metadata.

        Raises:
            FileNotFoundError: the part does not exist.
            ValueError: the file is broken. It is removed, so that the part counts as missing.
        """
        try:
            return read_tensors(self.path(number))
        except ValueError:
            self.path(number).unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Remove all parts, and incomplete files of killed writers."""
        shutil.rmtree(self.folder, ignore_errors=True)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None, scratch: Path | None = None
) -> None:
    """Write a safetensors file with a digest of its content, completely or not at all; see `written_whole`."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # A tensor, because safetensors orders metadata randomly, and equal content must give equal files.
    tensors[OF_ALL] = torch.tensor(list(bytes.fromhex(digest_of_tensors(tensors, metadata))), dtype=torch.uint8)
    with written_whole(path, scratch) as temporary:
        save_file(tensors, temporary, metadata=metadata)


@contextmanager
def written_whole(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Write a file to a temporary name, and move it into place once it is complete and on the disk.

    Args:
        path: the final path; its folder is created if needed.
        scratch: folder for the temporary file, on the same disk; by default the file's own. A killed writer leaves its
            temporary file there.

    Yields:
        The temporary path to write to.

    Raises:
        OSError: the file cannot be written; the message names it.
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
    except FileNotFoundError:  # a faster run has removed the folder; callers expect this
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(f"{str(path)!r} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Write several files, and move them into place once all of them are complete and on the disk.

    If the writer is killed or the disk is full, existing files stay unchanged. Files with other names are kept. Only
    one writer may be active.

    Args:
        folder: the destination; created if needed.

    Yields:
        A folder inside it to write to.
    """
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # from a killed writer
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
    """Read a file that `write_tensors` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a safetensors file, is broken, or its bytes have changed; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        # A header that safetensors accepts may still name a dtype that torch lacks, or be truncated.
        raise ValueError(f"{str(path)!r} is broken: {error}") from error
    of_tensors = tensors.pop(ALGORITHM, None)  # from earlier versions; the first version had none
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
    """Return the rank of this process and the number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
