"""Embeddings on disk, found by what they were made from: parts while they grow, one mapped folder when whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from safetensors import SafetensorError
from transformers.utils import logging

from hf_distinct.data.caption_embeddings import CaptionEmbeddings, EmbeddedRows
from hf_distinct.data.table import read_object
from hf_distinct.files.disk_space import check_room
from hf_distinct.files.parts import Parts
from hf_distinct.files.seals import altered, changed, describe, sealed

if TYPE_CHECKING:
    from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

FORM = 2  # a number of its own for each form of what is stored: older files are not found, instead of misread
MANIFEST = "manifest.json"
MANIFEST_KEYS = ("scorer", "fingerprint", "portable_name", "failures", "losses", "files")


class EmbeddingCache:
    """The place of one data set's embeddings under one scorer.

    `embeddings-KEY/` holds them whole; it appears in one move. Before that `embeddings-KEY.parts-of-N/` holds parts.
    Those that another machine made, and somebody shared, have the portable one of their two names (`cache_names`).

    Args:
        cache_dir: Folder that may hold the caches of many data sets and scorers.
        dataset: Columns `image`, `captions` and `image_id`.
        scorer: The CLIP model.
        part_rows: Rows of a part.
    """

    def __init__(self, cache_dir: Path, dataset: Dataset, scorer: ClipScorer, part_rows: int) -> None:
        self.num_rows, self.part_rows, self.scorer = len(dataset), part_rows, scorer
        name, self.portable_name = cache_names(dataset, scorer)
        self.folder = cache_dir / name
        if not self.is_whole() and (cache_dir / self.portable_name / MANIFEST).is_file():
            self.folder = cache_dir / self.portable_name
        # Parts of another size are other parts.
        self.parts = Parts(self.folder.with_suffix(f".parts-of-{part_rows}"), -(-self.num_rows // part_rows))

    def check_room(self, dataset: Dataset) -> None:
        """Raise OSError if the disk has no room for what is left to do: the parts, and all of them joined."""
        tables = dataset.select_columns(["captions"]).with_format("arrow").iter(batch_size=1000)
        captions = sum(pc.sum(pc.list_value_length(table["captions"])).as_py() or 0 for table in tables)
        whole = (self.num_rows + captions) * self.scorer.embed_dim * 2  # float16
        left = whole * len(self.parts.missing()) // max(self.parts.count, 1)
        check_room(self.folder.parent, whole + left, "The embeddings")

    def rows_of(self, number: int) -> range:
        """Return the rows of a part."""
        return range(number * self.part_rows, min((number + 1) * self.part_rows, self.num_rows))

    def is_whole(self) -> bool:
        """Return whether nothing is left to do."""
        return (self.folder / MANIFEST).is_file()

    def read(self) -> tuple[CaptionEmbeddings, dict[int, str], dict[int, str]] | None:
        """Map the embeddings; read the reason by dropped row and what RGB lost by row; None while not whole."""
        if not self.is_whole():
            return None
        try:
            manifest = read_object(self.folder / MANIFEST)
            if reason := altered(manifest, MANIFEST_KEYS):
                raise ValueError(f"{MANIFEST}: {reason}")
            first = os.environ.get("LOCAL_RANK", "0") == "0"  # looks at every byte, for all processes of the machine
            if first and (reason := changed(self.folder, manifest["files"])):
                raise ValueError(reason)
            embeddings = CaptionEmbeddings.load(self.folder)
            failures, losses = (
                {int(row): reason for row, reason in manifest[name].items()} for name in ("failures", "losses")
            )
            if len(embeddings) + len(failures) != self.num_rows:
                raise ValueError(f"{len(embeddings)} embeddings and {len(failures)} failures for {self.num_rows} rows")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # Moved, not removed: another process may be reading it, and nothing that is cached is lost in silence.
            broken = self.folder.with_name(f"{self.folder.name}.broken-{uuid.uuid4().hex[:8]}")
            logger.warning(
                f"The cached embeddings are unusable. They were moved to {broken} and are computed again: {error}"
            )
            with contextlib.suppress(FileNotFoundError):  # another process has moved it
                self.folder.rename(broken)
            return None
        if self.parts.folder.is_dir():  # of a run that was slower, or killed between its last two moves
            self.parts.remove()
        return embeddings, failures, losses

    def write_part(self, number: int, rows: EmbeddedRows) -> None:
        """Write a part, as float16; or not, if a faster run has joined all of them and taken their folder away."""
        tensors = {
            "image_embeds": rows.image_embeds.half(),
            "caption_embeds": rows.caption_embeds.half(),
            "caption_counts": rows.caption_counts,
        }
        told = {"failures": json.dumps(rows.failures), "losses": json.dumps(rows.losses)}
        try:
            self.parts.write(number, tensors, told)
        except (OSError, SafetensorError):
            if not self.is_whole():
                raise

    def merge(self) -> None:
        """Join the parts in one folder; where a part turns out to be missing or broken, leave that to be mended."""
        # Beside the parts, so that what a killed merge leaves goes with them.
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
            shutil.rmtree(merged, ignore_errors=True)  # gone already, if all went well
        self.parts.remove()

    def _merge_into(self, folder: Path) -> None:
        counts, num_images = [], 0
        told: dict[str, dict[str, str]] = {"failures": {}, "losses": {}}
        for number in range(self.parts.count):
            tensors, metadata = self.parts.read(number)
            counts.append(tensors["caption_counts"].numpy())
            for name, by_row in told.items():
                by_row |= json.loads(metadata[name])
            num_images += len(tensors["image_embeds"])
        offsets = np.concatenate([[0], np.concatenate(counts).cumsum()]).astype(np.int64)
        folder.mkdir()
        np.save(folder / "caption_offsets.npy", offsets)
        for name, length in (("image_embeds", num_images), ("caption_embeds", int(offsets[-1]))):
            shape = (length, self.scorer.embed_dim)
            # Part by part: all of it may be larger than the memory. Not through a map, which dies on a full disk.
            with (folder / f"{name}.npy").open("wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for number in range(self.parts.count):
                    file.write(self.parts.read(number)[0][name].numpy().tobytes())
                file.flush()
                os.fsync(file.fileno())
        manifest = {
            "scorer": self.scorer.name, "fingerprint": self.scorer.fingerprint, "portable_name": self.portable_name,
            **told, "files": describe(folder, sorted(folder.glob("*.npy"))),
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1))


def cache_name(dataset: Dataset, scorer: ClipScorer) -> str:
    """The first of the two `cache_names`."""
    return cache_names(dataset, scorer)[0]


def cache_names(dataset: Dataset, scorer: ClipScorer) -> tuple[str, str]:
    """Return the names of the folder of a data set's embeddings, each with a digest of what they depend on.

    Captions and image ids count by content, images that the data set holds itself by content, too. Image files count
    by path, size and time of modification in the first name, which is that of this machine; by size alone in the
    second, which other machines find. Neither other columns nor the way in which the data set was made count.
    """
    begin = f"{FORM}\n{scorer.fingerprint}\n".encode()
    here, anywhere = (hashlib.blake2b(begin, digest_size=12, person=person) for person in (b"", b"portable"))
    columns = dataset.select_columns(["image", "captions", "image_id"]).with_format("arrow")
    for table in columns.iter(batch_size=256):
        texts = json.dumps([table["image_id"].to_pylist(), table["captions"].to_pylist()]).encode()
        here.update(texts)
        anywhere.update(texts)
        for of_here, of_anywhere in image_states(table):
            here.update(of_here)
            anywhere.update(of_anywhere)
    return f"embeddings-{here.hexdigest()}", f"embeddings-{anywhere.hexdigest()}"


def image_states(table: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    """What is known of each image of a table without decoding it: on this machine, and on any; see `cache_names`."""
    images = table["image"].combine_chunks()
    paths, contents = pc.struct_field(images, "path").to_pylist(), pc.struct_field(images, "bytes").to_pylist()
    for path, content in zip(paths, contents, strict=True):
        if content is not None:
            held = b"\nheld " + hashlib.blake2b(content).digest()
            yield held, held
        elif path is not None and os.path.exists(path):
            state = os.stat(path)
            name, size = path.encode("utf-8", "surrogatepass"), state.st_size
            yield b"\nfile %d %d %d " % (len(name), size, state.st_mtime_ns) + name, b"\nfile %d" % size
        else:
            none = b"\nnone " + (path or "").encode("utf-8", "surrogatepass")
            yield none, none
