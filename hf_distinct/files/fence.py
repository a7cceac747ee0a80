"""Check the paths that untrusted files name: the only place that decides whether a path may be read.

A caption list, a table or a parquet file may come from anywhere, and the images it names are read, shown on sheets and
pushed. So it may only name files in its own folder or in the user's `image_root`, and no URLs. Paths that you pass in
Python are trusted and not checked here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")  # at least two letters: C: is a drive
GIVE_IT = "pass that file itself as --dataset"
NUL = "\0"
IMAGE_ROOT = "set --image_root to a folder that contains all of them (--image_root / allows any file)"


class Fence:
    """The folders that files may be read from.

    Args:
        folders: files may be at any depth in them.
        advice: how to allow a file elsewhere; it ends the error messages.
    """

    def __init__(self, folders: Iterable[str | os.PathLike[str]], advice: str = IMAGE_ROOT) -> None:
        self.advice = advice
        self.folders = list(dict.fromkeys(os.path.realpath(folder) for folder in folders))
        # Snapshots in the Hub's cache are links to blobs.
        caches = [re.match(r"(.*[\\/])snapshots([\\/]|$)", folder) for folder in self.folders]
        self._open = [*self.folders, *(f"{found[1]}blobs" for found in caches if found)]
        self._parents: dict[str, str] = {}

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path, and the target of any links in it, is in one of the folders."""
        try:
            real = self._real(os.path.abspath(path))
        except ValueError:  # a NUL in the path
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
        """Yield a message if a path is outside of the folders.

        Args:
            path: the file; relative paths are resolved from the working directory.
            where: the file and row that name it; the message begins with them.
        """
        if path not in self:
            given = os.fspath(path)
            real = os.path.realpath(given.partition(NUL)[0])
            yield (
                f"{where} names {given!r}, which leads to {real!r}. Only files in "
                f"{' and '.join(map(repr, self.folders))} are read. To allow this file, {self.advice}."
            )

    def check(self, path: str | os.PathLike[str], where: str) -> None:
        """Raise ValueError if a path is outside of the folders; see `problems`."""
        for problem in self.problems(path, where):
            raise ValueError(problem)


def is_address(path: str) -> bool:
    """Whether a path is an fsspec URL (`https://...`, `hf://...`, `zip://a.jpg::photos.zip`), not a plain file."""
    return "://" in path or _SCHEME.match(path) is not None


def local_file(path: str) -> str | None:
    """Return the local file that a path reads, such as `photos.zip` above; None if it is remote."""
    if not is_address(path):
        return path
    *within, last = path.split("::")
    last = last.removeprefix("file://")
    return None if is_address(last) or not all(hop.startswith("zip://") for hop in within) else last
