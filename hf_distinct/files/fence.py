"""Which files may be named by a file that strangers made: the one place that says whether a path is inside.

A list of captions, a table or a parquet file may come from anywhere, and what it names is read, shown on sheets and
pushed. So it may name files in its own folder, or in the one that the user gives as `image_root`, and no address.
Paths that a person passes in Python are that person's own, and are not looked at here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")  # two letters at least: C: is a drive
GIVE_IT = "give that file itself as --dataset"
NUL = "\0"
IMAGE_ROOT = "set --image_root to a folder that holds all of them (--image_root / for any place)"


class Fence:
    """Folders out of which nothing is read.

    Args:
        folders: Where files may lie, at any depth.
        advice: What to do about a file elsewhere, as the messages end.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], advice: str = IMAGE_ROOT) -> None:
        self.advice = advice
        self.folders = list(dict.fromkeys(os.path.realpath(folder) for folder in folders))
        # What the Hub's cache shows as a snapshot are links to its blobs.
        caches = [re.match(r"(.*[\\/])snapshots([\\/]|$)", folder) for folder in self.folders]
        self._open = [*self.folders, *(f"{found[1]}blobs" for found in caches if found)]
        self._parents: dict[str, str] = {}

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path lies in one of the folders, and what it leads to over links as well."""
        try:
            real = self._real(os.path.abspath(path))
        except ValueError:  # a NUL in its name
            return False
        return any(real == folder or real.startswith(os.path.join(folder, "")) for folder in self._open)

    def _real(self, path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        return os.path.join(self._parents[parent], name)

    def problems(self, path: str | os.PathLike[str], where: str) -> Iterator[str]:
        """Say that a path leads out, if it does.

        Args:
            path: The file, below the working directory if it is relative.
            where: What names it (file and row), as the message begins.
        """
        if path not in self:
            given = os.fspath(path)
            real = os.path.realpath(given.partition(NUL)[0])
            yield (
                f"{where} names {given!r}, which leads to {real!r}. Nothing outside of "
                f"{' and '.join(map(repr, self.folders))} is read. To allow it, {self.advice}."
            )

    def check(self, path: str | os.PathLike[str], where: str) -> None:
        """Raise ValueError if a path leads out; see `problems`."""
        for problem in self.problems(path, where):
            raise ValueError(problem)


def is_address(path: str) -> bool:
    """Whether a path is one of fsspec's (`https://...`, `hf://...`, `zip://a.jpg::photos.zip`), not a plain file."""
    return "://" in path or _SCHEME.match(path) is not None


def local_file(path: str) -> str | None:
    """Return the file of this machine that a path reads, `photos.zip` of the above; None if it asks somebody else."""
    if not is_address(path):
        return path
    *within, last = path.split("::")
    last = last.removeprefix("file://")
    return None if is_address(last) or not all(hop.startswith("zip://") for hop in within) else last
