"""An index of pictures on disk, wherever they are: files in a folder, tar shards, parquet files.

Each of millions of pictures can be read by its number, and no process holds their names in memory.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from transformers.utils import logging

from hf_distinct.data.images import picture_endings
from hf_distinct.data.skips import Skips
from hf_distinct.data.table import IMAGE_NAMES
from hf_distinct.data.tar_shards import file_state, find_shards, is_tar
from hf_distinct.data.tar_stream import find_files, open_shard
from hf_distinct.files.parts import written_whole

logger = logging.get_logger(__name__)

CHUNK = 65_536  # names that are held as Python objects at a time
PARQUET = ".parquet"
SCHEMA = pa.schema([("file", pa.binary()), ("inside", pa.binary()), ("begin", pa.int64()), ("size", pa.int64())])
"""A picture file has nothing inside. In a tar, it is a name, with its first byte and size; in a parquet file it is the
number of a row, with its row group and its place in that."""

_Row = tuple[bytes, bytes, int, int]


@dataclass(frozen=True)
class PictureFiles:
    """The files that pictures are in.

    Attributes:
        count: their number.
        digest: of their names, sizes and times of modification.
    """

    count: int
    digest: str

    def __str__(self) -> str:
        return f"{self.count} files (digest {self.digest} of their names, sizes and times)"


class PictureIndex(Sequence[Any]):
    """The pictures of an index, as images for [`hf_distinct.inference.captioning.Captioner.stream`].

    Args:
        path: the file that `write_index` wrote.
        source: the source of the pictures.
        numbers: which parts of the index to take, in ascending order; by default all.
    """

    def __init__(self, path: Path, source: str | os.PathLike[str], numbers: Sequence[int] | None = None) -> None:
        self.path, self.source = path, source
        self._batches = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batch: tuple[int, Any] = (-1, None)
        self._file: tuple[int, str, Any] = (0, "", None)
        self.root, _ = _root_and_files(source)
        self.part_rows = int(self._batches.schema.metadata[b"part_rows"])
        self.num_parts = self._batches.num_record_batches
        self.numbers: Sequence[int] = range(self.num_parts) if numbers is None else numbers
        self._length = sum(map(self.rows_of_part, self.numbers[-1:])) + self.part_rows * max(len(self.numbers) - 1, 0)

    def __reduce__(self) -> Any:
        """Pickle the place of the index: each process opens its own files."""
        return PictureIndex, (self.path, self.source, self.numbers)

    def rows_of_part(self, number: int) -> int:
        """Return the number of pictures in a part: equal for all parts but the last."""
        return self.part_rows if number < self.num_parts - 1 else self._batches.get_batch(number).num_rows

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self._length

    def name(self, place: int) -> str:
        """Return the name of a picture: its path below the source, ``FILE.tar/NAME.jpg`` or ``FILE.parquet/ROW``."""
        file, inside, _, _ = self._row(place)
        return f"{file}/{inside}" if inside else file

    def __getitem__(self, place: Any) -> Any:
        """Return the path of a picture file, or ``{"bytes": ..., "path": name}`` of an image in another file."""
        file, inside, begin, size = self._row(place)
        path = os.path.join(self.root, file)
        return {"bytes": self._read(path, begin, size), "path": f"{file}/{inside}"} if inside else Path(path)

    def _row(self, place: int) -> tuple[str, str, int, int]:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number, row = self.numbers[place // self.part_rows], place % self.part_rows
        if self._batch[0] != number:
            self._batch = number, self._batches.get_batch(number)
        file, inside, begin, size = (column[row].as_py() for column in self._batch[1].columns)
        return os.fsdecode(file), os.fsdecode(inside), begin, size

    def _read(self, path: str, begin: int, size: int) -> bytes:
        process, opened, file = self._file
        if (process, opened) != (os.getpid(), path):  # forked processes must not share the position in a file
            file = _EmbeddedImages(path) if path.lower().endswith(PARQUET) else open_shard(path)
            self._file = os.getpid(), path, file
        if isinstance(file, _EmbeddedImages):
            return file.read(begin, size)
        file.seek(begin)
        return file.read(size)


class _EmbeddedImages:
    """The column of images of a parquet file; one row group is held in memory."""

    def __init__(self, path: str) -> None:
        try:
            self.file = pq.ParquetFile(path if os.path.isfile(path) else fsspec.open(path, "rb").open())
        except (pa.ArrowException, ValueError) as error:
            raise ValueError(f"{path}: not a readable parquet file: {error}") from error
        held = [field.name for field in self.file.schema_arrow if _is_image(field)]
        if "image" not in held and len(held) > 1:
            raise ValueError(f"{path}: the images may be in any of the columns {', '.join(held)}. Name one `image`.")
        self.column = None if not held else "image" if "image" in held else held[0]
        self._group: tuple[int, Any] = (-1, None)

    def read(self, group: int, row: int) -> bytes:
        """Return the encoded bytes of an image; none if the row has no image."""
        if self._group[0] != group:
            images = self.file.read_row_group(group, columns=[self.column])[self.column]
            self._group = group, pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images
        return self._group[1][row].as_py() or b""


def write_index(source: str | os.PathLike[str], path: Path, part_rows: int) -> PictureFiles:
    """Write the index of all pictures of a source, in the order of their names; tars and parquet in their own order.

    Args:
        source: a folder of pictures, tar shards and parquet files, with the folders below it; one such file, or a
            pattern ``shards/{000..099}.tar``, also with URLs that fsspec reads.
        path: the file to write.
        part_rows: the number of pictures in a part.

    Returns:
        The files, as `find_picture_files` finds them. One warning names broken shards, and another one tells of files
        without pictures.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it has no pictures, or a parquet file cannot be read.
    """
    skips, files, rows = Skips(str(source)), _Files(source), 0
    pictures = (row for name in files for row in _pictures(files.root, name, skips))
    schema = SCHEMA.with_metadata({"part_rows": str(part_rows)})
    with written_whole(path) as temporary, pa.OSFile(str(temporary), "wb") as file:
        with pa.ipc.new_file(file, schema) as index:
            while part := list(islice(pictures, part_rows)):
                index.write_batch(pa.record_batch([pa.array(each) for each in zip(*part, strict=True)], schema=schema))
                rows += len(part)
        skips.warn()
        if not rows:
            raise ValueError(f"{source} contains no images: no file has an image file extension, or images inside.")
    if files.others:
        logger.info(f"{source}: {files.count} of {files.count + files.others} files have an image file extension")
    return files.state()


def find_picture_files(source: str | os.PathLike[str]) -> PictureFiles:
    """Find the files of a source without reading them, to see whether they have changed since `write_index`."""
    files = _Files(source)
    for _ in files:
        pass
    return files.state()


class _Files:
    """Goes once through the files of a source, in the order of their names.

    Attributes:
        count: files that may have pictures, so far.
        others: other files, so far.
    """

    def __init__(self, source: str | os.PathLike[str]) -> None:
        self.root, self._named = _root_and_files(source)
        self._digest, self._endings = xxhash.xxh3_64(), picture_endings()
        self.count = self.others = 0

    def __iter__(self) -> Iterator[str]:
        for name, size, changed in self._named or _walk(self.root):
            if not self._may_have_pictures(name):
                self.others += 1
                continue
            self.count += 1
            self._digest.update(b"%b\0%d %d\n" % (os.fsencode(name), size, changed))
            yield name

    def _may_have_pictures(self, name: str) -> bool:
        if name.lower().endswith(PARQUET):
            return _EmbeddedImages(os.path.join(self.root, name)).column is not None
        return is_tar(name) or os.path.splitext(name)[1].lower() in self._endings

    def state(self) -> PictureFiles:
        """Return the number and the digest of the files that may have pictures."""
        return PictureFiles(self.count, self._digest.hexdigest())


def _root_and_files(source: str | os.PathLike[str]) -> tuple[str, list[tuple[str, int, int]]]:
    """Return the folder that names are relative to, and name, size and time of files; none for a folder to walk."""
    place = os.fspath(source)
    if os.path.isdir(place):
        return place, []
    files = [place] if os.path.isfile(place) else find_shards(place)
    root = os.path.dirname(os.path.commonprefix(files))
    return root, [(file[len(root) :].lstrip("/"), *file_state(file)) for file in files]


def _walk(root: str, below: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of each file of a folder and the folders below it, as `sorted` sorts their paths."""
    names, folders = [pa.array([], pa.binary())], [pa.array([], pa.bool_())]
    with os.scandir(os.path.join(root, below)) as entries:  # sorted in Arrow, where a name takes 20 bytes and not 100
        while chunk := list(islice(entries, CHUNK)):
            names.append(pa.array([os.fsencode(each.name) for each in chunk], pa.binary()))
            folders.append(pa.array([each.is_dir(follow_symlinks=False) for each in chunk]))
    table = pa.table([pa.chunked_array(names), pa.chunked_array(folders)], ["name", "folder"]).sort_by("name")
    for chunk in table.to_batches(CHUNK):
        for name, is_folder in zip(*(column.to_pylist() for column in chunk.columns), strict=True):
            path = os.path.join(below, os.fsdecode(name))
            if is_folder:
                yield from _walk(root, path)
                continue
            try:
                found = os.stat(os.path.join(root, path))
            except FileNotFoundError:  # a link to nothing; whoever reads it will name it
                yield path, 0, 0
                continue
            if stat.S_ISREG(found.st_mode):
                yield path, found.st_size, found.st_mtime_ns


def _pictures(root: str, name: str, skips: Skips) -> Iterator[_Row]:
    """Yield the rows of the index for a file."""
    path, file = os.path.join(root, name), os.fsencode(name)
    if is_tar(name):
        for inside, begin, size in find_files(path, skips, picture_endings()):
            yield file, os.fsencode(inside), begin, size
    elif name.lower().endswith(PARQUET):
        about, number = _EmbeddedImages(path).file.metadata, 0
        if os.path.isfile(path) and about.num_rows > os.path.getsize(path):
            raise ValueError(f"{path}: it claims {about.num_rows} rows but is smaller, so it is broken or malicious.")
        for group in range(about.num_row_groups):
            for row in range(about.row_group(group).num_rows):
                yield file, b"%d" % number, group, row
                number += 1
    else:
        yield file, b"", 0, 0


def _is_image(field: pa.Field) -> bool:
    """Whether a column holds encoded images: as `datasets` stores them, or bytes under a usual name."""
    if pa.types.is_struct(field.type):
        return any(each.name == "bytes" and _is_binary(each.type) for each in field.type)
    return _is_binary(field.type) and any(field.name in names for names in IMAGE_NAMES)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
