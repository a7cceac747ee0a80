"""Document frequencies in files, which are written once for a dataset and mapped by all processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, is_caching_enabled
from filelock import FileLock
from transformers.utils import logging

from hf_distinct.evaluation.document_frequencies import (
    COLUMNS,
    DocumentFrequencies,
    count_images,
    count_into,
    hashed_references,
)
from hf_distinct.files.seals import altered, changed, describe, sealed

logger = logging.get_logger(__name__)

FORM = "document frequencies 1"  # changed with the file format and the tokenizer
MANIFEST = "manifest.json"


def document_frequencies(references: Sequence[Sequence[str]], end: Sequence[str] = ()) -> DocumentFrequencies:
    """Return in how many images each n-gram occurs.

    If the references are a column of a dataset that lies in files (``dataset["captions"]``), the counts are kept in a
    folder beside these files, where `datasets` keeps its own results, too. One process counts, and all others, now and
    later, map the counts into memory. The folder's name has a digest of the references. All other references are
    counted in memory.

    Args:
        references: the reference captions of each image.
        end: words added to the end of each reference.

    Raises:
        ValueError: an image has no reference.
    """
    source = getattr(references, "source", None)
    if not (isinstance(source, Dataset) and source.cache_files and is_caching_enabled()):
        return count_images(references, end)
    place = Path(source.cache_files[0]["filename"]).parent
    folder = place / f"document-frequencies-{_digest(source, references.column_name, end)}"  # type: ignore[attr-defined]
    found = _read(folder, len(references))
    if found is not None:
        return found
    try:
        with FileLock(f"{folder}.lock"):  # the other processes wait here
            found = _read(folder, len(references))
            if found is None:
                _write(folder, references, end)
                found = _read(folder, len(references))
    except OSError as error:
        logger.warning(
            f"The document frequencies of CIDEr-D cannot be kept in {place}, so that each process counts them again: "
            f"{error}"
        )
    return found or count_images(references, end)


def _read(folder: Path, images: int) -> DocumentFrequencies | None:
    """Map the columns; None if there are none, or broken ones, which are moved away."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if reason := altered(manifest, ()):
            raise ValueError(f"{MANIFEST}: {reason}")
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # this process reads every byte for its whole machine
        if first and (reason := changed(folder, manifest["files"])):
            raise ValueError(reason)
        columns = [_mapped(folder / name, kind) for name, kind in COLUMNS.items()]
        if manifest["images"] != images or len({len(column) for column in columns}) > 1:
            raise ValueError(f"{MANIFEST}: other numbers of images or n-grams than counted")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        broken = folder.with_name(f"{folder.name}.broken-{uuid.uuid4().hex[:8]}")
        logger.warning(
            f"The document frequencies are unusable. They were moved to {broken} and are counted again: {error}"
        )
        with contextlib.suppress(OSError):  # another process has moved it
            folder.rename(broken)
        return None
    return DocumentFrequencies(images, manifest["seed"], *columns)


def _mapped(path: Path, kind: str) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=kind, mode="r") if path.stat().st_size else np.empty(0, dtype=kind)


def _write(folder: Path, references: Sequence[Sequence[str]], end: Sequence[str]) -> None:
    """Count into files, and move their folder into place once it is complete and on the disk."""
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    unfinished.mkdir()
    try:
        with ExitStack() as stack:
            sinks = [stack.enter_context((unfinished / name).open("wb+")) for name in COLUMNS]
            seed = count_into(sinks, hashed_references(references, end), unfinished)
            for sink in sinks:
                sink.flush()
                os.fsync(sink.fileno())
        files = describe(unfinished, [unfinished / name for name in COLUMNS])
        manifest = {"images": len(references), "seed": seed, "files": files}
        (unfinished / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1), encoding="utf-8")
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # already moved on success


def _digest(dataset: Dataset, column: str, end: Sequence[str]) -> str:
    """Return a digest of the references alone; the dataset's own fingerprint changes with any other column, too."""
    begin = json.dumps([FORM, list(end)]).encode()
    numbers, lengths, letters = (xxhash.xxh3_128(begin) for _ in range(3))
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
        for chunk in table[column].chunks:
            texts = chunk.flatten().cast("large_string")
            numbers.update(_int64(pc.list_value_length(chunk)))
            lengths.update(_int64(pc.binary_length(texts)))
            _, offsets, characters = texts.buffers()
            places = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
            if characters is not None:
                letters.update(memoryview(characters)[places[0] : places[-1]])
    return xxhash.xxh3_128(numbers.digest() + lengths.digest() + letters.digest()).hexdigest()


def _int64(lengths: pc.Expression) -> bytes:
    return lengths.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False).tobytes()
