"""Rows in memory-mapped Arrow files; and the splits of a list of captions, which later runs find in such files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features
from datasets import config as datasets_config
from datasets.arrow_writer import ArrowWriter
from transformers.utils import logging

from hf_distinct.data.table import find_file, read_object
from hf_distinct.files.seals import altered, changed, describe, sealed

logger = logging.get_logger(__name__)

FORM = 2  # changed with the content of the files, so that those of an older version are not found
MANIFEST = "manifest.json"
UNFINISHED, WHOLE = "unfinished-", "whole"
DAY = 86_400
BATCH_ROWS = 8192
"""Rows that are handled at a time."""


def cache_root() -> Path:
    """Return the folder for files of this package in the cache of `datasets`."""
    return Path(datasets_config.HF_DATASETS_CACHE) / "hf_distinct"


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    cache_root().mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=cache_root())


def scratch_file(rows: int) -> Path | None:
    """Return a new file for so many rows, which is removed when this process ends; None for memory if they are few."""
    return Path(_scratch().name) / f"{uuid.uuid4().hex}.arrow" if rows > BATCH_ROWS else None


class Rows:
    """Rows that are written in batches and then read as a dataset.

    Args:
        features: the columns.
        file: a new file for the rows; None for memory.
    """

    def __init__(self, features: Features, file: Path | None = None) -> None:
        self.features, self.file, self.count = features, file, 0
        self._tables: list[pa.Table] = []
        self._writer: ArrowWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.count += len(table)
        if self.file is None:
            self._tables.append(table)
        elif len(table):
            self._writer = self._writer or ArrowWriter(features=self.features, path=str(self.file))
            self._writer.write_table(table)

    def dataset(self) -> Dataset:
        """End the writing, and return all rows."""
        if self._writer is None:
            return Dataset(pa.concat_tables([self.features.arrow_schema.empty_table(), *self._tables]))
        self._writer.finalize()
        return Dataset.from_file(str(self.file))


@dataclass
class Found:
    """What was found while a list of captions was read, for messages: skips, notes, and further columns.

    Attributes:
        skips, notes: see `hf_distinct.data.skips.Skips`.
        missing: image files that do not exist.
        kinds: kinds of values of each further column, see `hf_distinct.data.further.add_kinds`.
        differing: further columns that differ among the rows of an image.
    """

    skips: dict[str, list[str]]
    notes: dict[str, list[str]]
    missing: list[str]
    kinds: dict[str, list[str]]
    differing: list[str]


class CaptionFiles:
    """The splits that were read from a list of captions, in Arrow files, as long as nothing changes.

    A later run, and every other process of this one, maps these files instead of reading the list again. They are
    valid as long as the list and all image files have the same size and time of modification, and no missing image
    has appeared.

    Args:
        sources: the files of the list.
        settings: all other arguments that the result depends on.
    """

    def __init__(self, sources: Iterable[Path], *settings: Any) -> None:
        states = [(os.path.abspath(path), *_state(os.stat(path))) for path in sources if path.is_file()]
        key = json.dumps([FORM, states, [None if each is None else str(each) for each in settings]])
        self.folder = cache_root() / f"captions-{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}"
        self._unfinished: tempfile.TemporaryDirectory[str] | None = None

    def new_file(self, name: str) -> Path:
        """Return a file to write to, which is removed at the end; of a split, the one that `keep` keeps."""
        if self._unfinished is None:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished = tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self.folder.parent)
            for left in self.folder.parent.glob(f"{UNFINISHED}*"):  # by killed runs
                if left.stat().st_mtime < time.time() - DAY:
                    shutil.rmtree(left, ignore_errors=True)
        file = Path(self._unfinished.name) / name
        file.parent.mkdir(exist_ok=True)
        return file

    def split_file(self, split: str) -> Path:
        """Return the file to write a split to."""
        return self.new_file(f"{WHOLE}/{split}.arrow")

    def keep(self, loaded: dict[str, Dataset], found: Found) -> DatasetDict:
        """Keep the written splits, and return them from where they stay.

        Args:
            loaded: the splits.
            found: what was found on the way.
        """
        whole = self.new_file(WHOLE)
        files = describe(whole, [whole / f"{split}.arrow" for split in loaded])
        manifest = {
            "splits": list(loaded), "files": files, "images": _image_states(loaded.values()), **asdict(found)
        }  # fmt: skip
        (whole / MANIFEST).write_text(json.dumps(sealed(manifest)))
        for file in whole.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        with contextlib.suppress(OSError):  # another run was faster, with the same files
            whole.rename(self.folder)
        kept = self._map(list(loaded))
        if self._unfinished is not None:
            self._unfinished.cleanup()
            self._unfinished = None
        return kept

    def open(self) -> tuple[DatasetDict, Found] | None:
        """Return the splits and what was found on the way; None if they have to be read (again)."""
        if not (self.folder / MANIFEST).is_file():
            return None
        try:
            manifest = read_object(self.folder / MANIFEST)
            if reason := altered(manifest, ()):
                raise ValueError(f"{MANIFEST}: {reason}")
            if reason := changed(self.folder, manifest["files"]):
                raise ValueError(reason)
            loaded = self._map(manifest["splits"])
            found = Found(**{each.name: manifest[each.name] for each in fields(Found)})
            if manifest["images"] == _image_states(loaded.values()) and not any(map(find_file, found.missing)):
                return loaded, found
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            logger.warning(f"The captions in {self.folder} are unusable and are read again: {error}")
        with contextlib.suppress(FileNotFoundError):  # another run has moved it
            self.folder.rename(self.new_file("old"))
        return None

    def _map(self, splits: Iterable[str]) -> DatasetDict:
        return DatasetDict({split: Dataset.from_file(str(self.folder / f"{split}.arrow")) for split in splits})


def _image_states(parts: Iterable[Dataset]) -> str:
    """Return a digest of size and time of modification of all image files; of links, also where they lead."""
    states = hashlib.blake2b(digest_size=16)
    for rows in parts:
        for table in rows.select_columns(["image"]).with_format("arrow").iter(BATCH_ROWS):
            for path in pc.struct_field(table["image"].combine_chunks(), "path").to_pylist():
                try:
                    state = os.lstat(path)
                    if stat.S_ISLNK(state.st_mode):
                        states.update(os.path.realpath(path).encode("utf-8", "surrogatepass"))
                        state = os.stat(path)
                    states.update(b"%d %d\n" % _state(state))
                except OSError:
                    states.update(b"none\n")
    return states.hexdigest()


def _state(state: os.stat_result) -> tuple[int, int]:
    return state.st_size, state.st_mtime_ns
