"""Cache of embeddings on disk, identified by their inputs: parts at first, then one memory-mapped folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers.utils import logging

from hf_distinct.data.caption_embeddings import CaptionEmbeddings, EmbeddedRows
from hf_distinct.data.table import read_object
from hf_distinct.distributed.nodes import once_per_node
from hf_distinct.files.disk_space import check_room
from hf_distinct.files.parts import Parts
from hf_distinct.files.seals import altered, changed, describe, sealed

if TYPE_CHECKING:
    from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

FORM = 2  # changed with the file format, so that files in an older format are not found
MANIFEST = "manifest.json"
END = 256  # bytes
MANIFEST_KEYS = ("scorer", "fingerprint", "portable_name", "failures", "losses", "files")


class EmbeddingCache:
    """The cache of one dataset's embeddings under one scorer.

    `embeddings-KEY/` contains all embeddings; it is moved into place when complete. Until then,
    `embeddings-KEY.parts-of-N/` contains parts. A cache that another machine created and shared has the portable one
    of the two names (`cache_names`).

    Args:
        cache_dir: folder for the caches of any number of datasets and scorers.
        dataset: columns `image`, `captions` and `image_id`.
        scorer: the CLIP model.
        part_rows: rows per part.
        dtype: type of the embeddings, float16 or float32.
    """

    def __init__(
        self,
        cache_dir: Path,
        dataset: Dataset,
        scorer: ClipScorer,
        part_rows: int,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        self.num_rows, self.part_rows, self.scorer, self.dtype = len(dataset), part_rows, scorer, dtype
        name, self.portable_name = once_per_node(lambda: names_in(cache_dir, dataset, scorer, dtype))
        self.folder = cache_dir / name
        self._name_portably = partial(_name, dataset, scorer, dtype, portable=True)
        if not self.is_whole() and self.portable_name and (cache_dir / self.portable_name / MANIFEST).is_file():
            self.folder = cache_dir / self.portable_name
        # Parts with another number of rows cannot be used.
        self.parts = Parts(self.folder.with_suffix(f".parts-of-{part_rows}"), -(-self.num_rows // part_rows))

    def check_room(self, dataset: Dataset) -> None:
        """Raise OSError if the disk lacks space for the remaining parts and for the joined files."""
        tables = dataset.select_columns(["captions"]).with_format("arrow").iter(batch_size=1000)
        captions = sum(pc.sum(pc.list_value_length(table["captions"])).as_py() or 0 for table in tables)
        whole = (self.num_rows + captions) * self.scorer.embed_dim * self.dtype.itemsize
        left = whole * len(self.parts.missing()) // max(self.parts.count, 1)
        check_room(self.folder.parent, whole + left, "The embeddings")

    def rows_of(self, number: int) -> range:
        """Return the rows of a part."""
        return range(number * self.part_rows, min((number + 1) * self.part_rows, self.num_rows))

    def is_whole(self) -> bool:
        """Return whether the cache is complete."""
        return (self.folder / MANIFEST).is_file()

    def read(self) -> tuple[CaptionEmbeddings, dict[int, str], dict[int, str]] | None:
        """Return embeddings, the reasons of dropped rows, and RGB losses by row; None while incomplete."""
        if not self.is_whole():
            return None
        try:
            manifest = read_object(self.folder / MANIFEST)
            if reason := altered(manifest, MANIFEST_KEYS):
                raise ValueError(f"{MANIFEST}: {reason}")
            first = os.environ.get("LOCAL_RANK", "0") == "0"  # this process reads every byte for its whole machine
            if first and (reason := changed(self.folder, manifest["files"])):
                raise ValueError(reason)
            embeddings = CaptionEmbeddings.load(self.folder)
            failures, losses = (
                {int(row): reason for row, reason in manifest[name].items()} for name in ("failures", "losses")
            )
            if len(embeddings) + len(failures) != self.num_rows:
                raise ValueError(f"{len(embeddings)} embeddings and {len(failures)} failures for {self.num_rows} rows")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Moved, not removed: another process may be reading it, and cached data are not deleted silently.
            broken = self.folder.with_name(f"{self.folder.name}.broken-{uuid.uuid4().hex[:8]}")
            logger.warning(
                f"The cached embeddings are unusable. They were moved to {broken} and are computed again: {error}"
            )
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                self.folder.rename(broken)
            return None
        if self.parts.folder.is_dir():  # of a slower run, or of one killed between its last two moves
            self.parts.remove()
        return embeddings, failures, losses

    def write_part(self, number: int, rows: EmbeddedRows) -> None:
        """Write a part, unless a faster run has already joined all parts and removed their folder."""
        tensors = {
            "image_embeds": rows.image_embeds.to(self.dtype),
            "caption_embeds": rows.caption_embeds.to(self.dtype),
            "caption_counts": rows.caption_counts,
        }
        metadata = {"failures": json.dumps(rows.failures), "losses": json.dumps(rows.losses)}
        try:
            self.parts.write(number, tensors, metadata)
        except (OSError, SafetensorError):
            if not self.is_whole():
                raise

    def merge(self) -> None:
        """Join the parts in one folder; if a part is missing or broken, leave it to be computed again."""
        # In the folder of the parts, so that it is removed with them if the run is killed.
        merged = self.parts.folder / f"merged-{uuid.uuid4().hex}"
        try:
            self._merge_into(merged)
            os.rename(merged, self.folder)
        except (OSError, ValueError) as error:
            if self.is_whole() or isinstance(error, FileNotFoundError):  # another run was faster
                return
            if isinstance(error, OSError):
                raise
            logger.warning(f"A part of the embeddings is computed again: {error}")
            return
        finally:
            shutil.rmtree(merged, ignore_errors=True)  # already moved on success
        self.parts.remove()

    def _merge_into(self, folder: Path) -> None:
        counts, num_images = [], 0
        by_name: dict[str, dict[str, str]] = {"failures": {}, "losses": {}}
        for number in range(self.parts.count):
            tensors, metadata = self.parts.read(number)
            counts.append(tensors["caption_counts"].numpy())
            for name, by_row in by_name.items():
                by_row |= json.loads(metadata[name])
            num_images += len(tensors["image_embeds"])
        offsets = np.concatenate([[0], np.concatenate(counts).cumsum()]).astype(np.int64)
        folder.mkdir()
        np.save(folder / "caption_offsets.npy", offsets)
        for name, length in (("image_embeds", num_images), ("caption_embeds", int(offsets[-1]))):
            shape = (length, self.scorer.embed_dim)
            # Part by part, because all may exceed the memory. Not memory-mapped, which would crash on a full disk.
            with (folder / f"{name}.npy").open("wb") as file:
                header = {"descr": f"<f{self.dtype.itemsize}", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for number in range(self.parts.count):
                    file.write(self.parts.read(number)[0][name].numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
        manifest = {
            "scorer": self.scorer.name, "fingerprint": self.scorer.fingerprint,
            "portable_name": self.portable_name or self._name_portably(),
            **by_name, "files": describe(folder, sorted(folder.glob("*.npy"))),
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1))


def names_in(
    cache_dir: Path, dataset: Dataset, scorer: ClipScorer, dtype: torch.dtype = torch.float16
) -> tuple[str, str]:
    """Return both `cache_names`; the second one, which takes longer, is empty if the first one is in the folder."""
    name = cache_name(dataset, scorer, dtype)
    whole = (cache_dir / name / MANIFEST).is_file()
    return name, "" if whole else _name(dataset, scorer, dtype, portable=True)


def cache_names(dataset: Dataset, scorer: ClipScorer, dtype: torch.dtype = torch.float16) -> tuple[str, str]:
    """Return the folder names of a dataset's embeddings, which contain digests of their inputs.

    Captions and image ids are identified by content. Image files are identified by path, size and time of
    modification in the first name, which is for this machine; by size only in the second name, which other machines
    can find. Images stored in the dataset are identified by content. If such a dataset lies in files, the first name
    depends on size and time of modification of these files, and on the ends of the images only. Other columns do not
    matter.
    """
    return cache_name(dataset, scorer, dtype), _name(dataset, scorer, dtype, portable=True)


def cache_name(dataset: Dataset, scorer: ClipScorer, dtype: torch.dtype = torch.float16) -> str:
    """Return the first of the two `cache_names`."""
    return _name(dataset, scorer, dtype, portable=False)


def _name(dataset: Dataset, scorer: ClipScorer, dtype: torch.dtype, portable: bool) -> str:
    form = FORM if dtype == torch.float16 else f"{FORM} {dtype}"
    begin = f"{form}\n{scorer.fingerprint}\n".encode()
    digest = hashlib.blake2b(begin, digest_size=12, person=b"portable" if portable else b"")
    files = [] if portable else sorted({each["filename"] for each in dataset.cache_files})
    held = False
    columns = dataset.select_columns(["image", "captions", "image_id"]).with_format("arrow")
    for table in columns.iter(batch_size=256):
        digest.update(json.dumps([table["image_id"].to_pylist(), table["captions"].to_pylist()]).encode())
        for state, is_held in image_states(table, portable, END if files else None):
            digest.update(state)
            held = held or is_held
    for file in files if held else []:
        of_file = os.stat(file)
        digest.update(f"\n{file} {of_file.st_size} {of_file.st_mtime_ns}".encode("utf-8", "surrogatepass"))
    return f"embeddings-{digest.hexdigest()}"


def image_states(table: pa.Table, portable: bool = False, end: int | None = None) -> Iterator[tuple[bytes, bool]]:
    """Yield the identity of each undecoded image, and whether it is stored in the dataset; see `cache_names`.

    Args:
        table: rows with a column `image`.
        portable: identify files by size only, as other machines can.
        end: read only so many bytes at the end of a stored image.
    """
    images = table["image"].combine_chunks()
    paths, contents = pc.struct_field(images, "path").to_pylist(), pc.struct_field(images, "bytes")
    sizes = pc.binary_length(contents).to_pylist()
    if end is not None:
        contents = pc.binary_slice(contents.cast(pa.large_binary()), -end, None)
    for path, size, content in zip(paths, sizes, contents, strict=True):
        if size is not None:
            of_end = b"" if end is None else b"%d " % size
            yield b"\nheld " + of_end + hashlib.blake2b(content.as_buffer()).digest(), True
            continue
        name = (path or "").encode("utf-8", "surrogatepass")
        try:
            state = os.stat(path)
        except (OSError, TypeError, ValueError):  # no such file, no path, or a NUL in it
            yield b"\nnone " + name, False
        else:
            size = state.st_size
            full = b"\nfile %d %d %d " % (len(name), size, state.st_mtime_ns) + name
            yield b"\nfile %d" % size if portable else full, False
