"""Read one shard: its samples as a stream, or the places of its files. Sizes are checked before anything is read."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from pathlib import PurePosixPath
from typing import Any

import fsspec

from hf_distinct.data.skips import Skips

GZIP = b"\x1f\x8b"
# An image of 178 million pixels, the maximum, is smaller than this in any usual format.
MAX_MEMBER_BYTES = 256 << 20
MAX_HEADER_BYTES = 1 << 20
MAX_OTHERS = 100
# tarfile continues to read after the end, to skip the up to 8 EiB that a header may claim.
MAX_EMPTY_READS = 8
SPARSE = "sparse file (create the shard again without --sparse)"
TOO_LARGE = (
    f"file over the limit of {MAX_MEMBER_BYTES} bytes (make it smaller, or raise "
    "hf_distinct.data.tar_stream.MAX_MEMBER_BYTES)"
)


class _Tail:
    """A stream that keeps the last bytes read, because a complete archive ends in zeros, and limits headers.

    tarfile reads headers of any size into memory, and the names in a PAX header may have gigabytes.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.last, self.place, self.empty = stream, b"", 0, 0
        self.limit: float = MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if self.place > self.limit:
            raise tarfile.ReadError(f"a name or header of more than {MAX_HEADER_BYTES} bytes")
        data = self.stream.read(size)
        self.place += len(data)
        self.empty = 0 if data else self.empty + 1
        if self.empty > MAX_EMPTY_READS:
            raise tarfile.ReadError("it ends before the end of a file")
        self.last = (self.last + data)[-tarfile.BLOCKSIZE :]
        return data

    def end(self) -> bytes:
        """Return the last block of the whole stream."""
        self.limit = float("inf")
        while self.read(tarfile.RECORDSIZE):
            pass
        return self.last


def _tail(stream: Any) -> Any:  # tarfile's type hints require more than it uses
    return _Tail(stream)


class _Joined:
    """Bytes that were already read, followed by their stream, which may not support seeking."""

    def __init__(self, first: bytes, stream: Any) -> None:
        self.first, self.stream = first, stream

    def read(self, size: int = -1) -> bytes:
        first, self.first = self.first, b""
        return first or self.stream.read(size)


@contextmanager
def _plain(shard: str) -> Iterator[Any]:
    """Open a shard; gzip compression is detected, whatever the name, and undone while reading."""
    with fsspec.open(shard, "rb") as stream:
        first = stream.read(len(GZIP))
        whole: Any = _Joined(first, stream)
        yield gzip.GzipFile(fileobj=whole, mode="rb") if first == GZIP else whole


def read_samples(shard: str, skips: Skips, wanted: Collection[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and files (by lower-case extension) of each sample of a shard, read as a stream.

    Only files with a wanted extension are read; the others are empty. A file over `MAX_MEMBER_BYTES` is skipped.
    """
    key = ""
    files: dict[str, bytes] = {}
    try:
        with _plain(shard) as stream, tarfile.open(fileobj=(tail := _tail(stream)), mode="r|") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # otherwise memory use grows with their number
                tail.limit = archive.offset + MAX_HEADER_BYTES
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith((".", "__")) or "." not in name.name:
                    continue
                stem, _, endings = name.name.partition(".")
                this_key = str(name.with_name(stem))
                if this_key != key:
                    if files:
                        yield key, files
                    key, files = this_key, {}
                ending = endings.lower().rpartition(".")[2]
                if ending not in wanted:
                    if len(files) < MAX_OTHERS:
                        files[ending] = b""
                elif member.issparse():  # may claim gigabytes of zeros
                    skips.add(SPARSE, f"{os.path.basename(shard)}/{member.name} ({member.size} bytes)")
                elif member.size > MAX_MEMBER_BYTES:
                    skips.add(TOO_LARGE, f"{os.path.basename(shard)}/{member.name} ({member.size} bytes)")
                elif (content := archive.extractfile(member)) is not None:
                    files[ending] = content.read()
            if shard.endswith(".tar") and tail.end().strip(b"\0"):
                raise tarfile.ReadError("the end of the archive is missing")  # tarfile does not check this
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        # Earlier samples are kept; the current one may be incomplete.
        skips.add(f"broken shard ({type(error).__name__}: {error})", os.path.basename(shard))
        return
    if files:
        yield key, files


class _Headers:
    """A stream for tarfile to read headers from: as in `_Tail`, none may be too long."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.limit = stream, MAX_HEADER_BYTES
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if self.tell() + size > self.limit:
            raise tarfile.ReadError(f"a name or header of more than {MAX_HEADER_BYTES} bytes")
        return self.stream.read(size)


def open_shard(shard: str) -> Any:
    """Open a shard to read it at any place; places in a compressed one are those of its uncompressed content."""
    stream = fsspec.open(shard, "rb").open()
    compressed = stream.read(len(GZIP)) == GZIP
    stream.seek(0)
    return gzip.GzipFile(fileobj=stream, mode="rb") if compressed else stream


def find_files(shard: str, skips: Skips, endings: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """Yield name, first byte and size of each file of a shard with one of the endings (".jpg").

    Only headers are read: of a compressed shard, everything has to be. The same files as in `read_samples` are left
    out, and a broken shard keeps the files before the damage.
    """
    try:
        with closing(open_shard(shard)) as stream:
            headers: Any = _Headers(stream)
            with tarfile.open(fileobj=headers, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # otherwise memory use grows with their number
                    headers.limit = archive.offset + MAX_HEADER_BYTES
                    name = PurePosixPath(member.name)
                    if not member.isfile() or name.name.startswith((".", "__")) or name.suffix.lower() not in endings:
                        continue
                    if member.issparse() or member.size > MAX_MEMBER_BYTES:
                        reason = SPARSE if member.issparse() else TOO_LARGE
                        skips.add(reason, f"{os.path.basename(shard)}/{member.name} ({member.size} bytes)")
                        continue
                    yield member.name, member.offset_data, member.size
                if stream.tell() <= archive.offset:  # no block was read that would mark the end
                    raise tarfile.ReadError("the end of the archive is missing")
    except (tarfile.TarError, EOFError, OSError, ValueError, RecursionError, zlib.error) as error:
        skips.add(f"broken shard ({type(error).__name__}: {error})", os.path.basename(shard))
