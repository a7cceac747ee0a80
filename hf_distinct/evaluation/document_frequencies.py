"""In how many images of a corpus an n-gram occurs: counted in blocks, in memory that does not grow with the corpus."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

import numpy as np

from hf_distinct.evaluation.blocks import check_references, in_blocks
from hf_distinct.evaluation.ngram_hashes import hashed_ngrams, hashed_words
from hf_distinct.evaluation.ptb_tokenizer import tokenize

COLUMNS = {"keys": "<u8", "checks": "<u4", "counts": "<u4"}
"""The columns of a table, 16 bytes per n-gram."""
_SPOOL_IN_MEMORY = 1 << 25  # bytes
_MERGED_AT_A_TIME = 1 << 20  # entries
_REPEAT = np.uint64(0xD1B54A32D192ED03)
_RANGES = 256  # a power of 2
Blocks = Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]]
_ENTRY = np.dtype([("key", "<u8"), ("check", "<u4"), ("count", "<u4")])


class Collision(Exception):
    """Two different n-grams have the same 64 bits."""


class DocumentFrequencies(NamedTuple):
    """The number of images in whose references an n-gram occurs, for each n-gram that occurs in several.

    Most n-grams occur in one image. They need not be stored, since CIDEr-D weighs them like n-grams of no image.

    Attributes:
        images: the number of images.
        seed: the seed of the hashes.
        keys: ``(M,)`` uint64, the n-grams, sorted.
        checks: ``(M,)`` uint32, further bits of their hashes.
        counts: ``(M,)`` uint32, the number of images of each.
    """

    images: int
    seed: int
    keys: np.ndarray
    checks: np.ndarray
    counts: np.ndarray

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """Return for each n-gram in how many images it occurs, ``(M,)`` int64; 1 also for those in none.

        Args:
            hashes: ``(M, 2)``, with this seed.
        """
        found = np.ones(len(hashes), dtype=np.int64)
        if len(self.keys):
            order = hashes[:, 0].argsort()  # neighbouring look-ups read neighbouring pages
            keys, checks = _key_and_check(hashes[order])
            places = np.minimum(self.keys.searchsorted(keys), len(self.keys) - 1)
            known = (self.keys[places] == keys) & (self.checks[places] == checks)
            found[order[known]] = self.counts[places[known]]
        return found


def count_images(references: Sequence[Sequence[str]], end: Sequence[str] = ()) -> DocumentFrequencies:
    """Count in how many images each n-gram occurs.

    Args:
        references: the reference captions of each image.
        end: words added to the end of each reference.

    Raises:
        ValueError: an image has no reference.
    """
    return count_documents(hashed_references(references, end), len(references))


def count_documents(hashed_blocks: Blocks, documents: int) -> DocumentFrequencies:
    """Count in how many of any documents each n-gram occurs, such as captions; see `count_into`."""
    sinks = [io.BytesIO() for _ in COLUMNS]
    seed = count_into(sinks, hashed_blocks)
    columns = [np.frombuffer(sink.getbuffer(), kind) for sink, kind in zip(sinks, COLUMNS.values(), strict=True)]
    return DocumentFrequencies(documents, seed, *columns)


def count_into(sinks: Sequence[IO[bytes]], hashed_blocks: Blocks, scratch: Path | None = None) -> int:
    """Write the columns of a table to a file each, and return the seed.

    Args:
        sinks: the files.
        hashed_blocks: returns for a seed the blocks of `write_columns`.
        scratch: folder for a temporary file of about 1 kB per image; by default the system's.
    """
    for seed in count():
        try:
            write_columns(hashed_blocks(seed), sinks, scratch)
        except Collision:  # practically never; other seeds separate the two n-grams
            for sink in sinks:
                sink.seek(0)
                sink.truncate()
        else:
            return seed
    raise AssertionError


def hashed_references(references: Sequence[Sequence[str]], end: Sequence[str]) -> Blocks:
    """Return for `count_into` the n-grams of the references of each image; raises ValueError as `count_images`."""

    def hashed_blocks(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        rows = count()
        for block in in_blocks(references):
            for own, row in zip(block, rows, strict=False):
                check_references(own, row)
            texts = [[*tokenize(text), *end] for own in block for text in own]
            words = hashed_words((word for own in texts for word in own), seed)
            hashes, text, _ = hashed_ngrams(words, np.array([len(own) for own in texts]))
            yield hashes, np.repeat(np.arange(len(block)), [len(own) for own in block])[text]

    return hashed_blocks


def write_columns(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], sinks: Sequence[IO[bytes]], scratch: Path | None = None
) -> None:
    """Write for each n-gram of several documents its key, check and number of documents, to a file each.

    Args:
        blocks: the hashes of n-grams, ``(M, 2)``, and the document of each, ``(M,)``, in any number of blocks. All
            n-grams of a document are in one block; equal n-grams are in the order of their documents.
        sinks: the files.
        scratch: see `count_into`.

    Raises:
        Collision: two different n-grams have the same 64 bits.
    """
    # Each block is a sorted run in a temporary file. The runs are merged by ranges of keys, which are of about equal
    # size, because keys are spread evenly.
    edges = (np.arange(1, _RANGES, dtype=np.uint64)) << np.uint64(64 - _RANGES.bit_length() + 1)
    cuts, written = [], 0
    with SpooledTemporaryFile(_SPOOL_IN_MEMORY, dir=str(scratch) if scratch else None) as spool:
        for hashes, documents in blocks:
            run = _run(hashes, documents)
            cuts.append(written + np.concatenate([[0], run["key"].searchsorted(edges), [len(run)]]))
            written += len(run)
            spool.write(run.tobytes())
        step = max(1, min(_RANGES, _RANGES * _MERGED_AT_A_TIME // max(written, 1)))
        for first in range(0, _RANGES, step):
            parts = [_read(spool, int(cut[first]), int(cut[min(first + step, _RANGES)])) for cut in cuts]
            for sink, column in zip(sinks, _merged(np.concatenate(parts)) if parts else [], strict=False):
                sink.write(column.tobytes())


def _run(hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the n-grams of a block with the number of documents of each, sorted."""
    keys, checks = _key_and_check(hashes)
    order = keys.argsort(kind="stable")
    keys, checks, documents = keys[order], checks[order], documents[order]
    first = _first_of_each(keys, checks)
    repeated = (documents[1:] == documents[:-1]) & (keys[1:] == keys[:-1])
    run = np.empty(len(first), dtype=_ENTRY)
    run["key"], run["check"] = keys[first], checks[first]
    run["count"] = _sums(np.concatenate([[True], ~repeated])[: len(keys)], first)
    return run


def _merged(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Add up the entries of each n-gram, and return the columns of those with several documents."""
    entries = entries[entries["key"].argsort(kind="stable")]
    keys, checks = np.ascontiguousarray(entries["key"]), entries["check"]
    first = _first_of_each(keys, checks)
    counts = _sums(entries["count"], first)
    kept = counts > 1
    return keys[first][kept], checks[first][kept], counts[kept]


def numbered_repeats(hashes: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the hashes of n-grams, ``(M, 2)``, changed where an n-gram repeats an earlier one of its document.

    The second of equal n-grams gets the same hash in every document, the third another one, and so on. So the number
    of documents with the second is the number of documents with at least two.

    Args:
        hashes: ``(M, 2)``.
        documents: the document of each, ``(M,)``; equal n-grams are in the order of their documents.

    Raises:
        Collision: two different n-grams have the same 64 bits.
    """
    order = hashes[:, 0].argsort(kind="stable")
    keys, checks = _key_and_check(hashes[order])
    _first_of_each(keys, checks)
    repeated = (keys[1:] == keys[:-1]) & (documents[order][1:] == documents[order][:-1])
    places = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.concatenate([[True], ~repeated])[: len(order)], places, 0))
    numbers = np.empty(len(order), dtype=np.uint64)
    numbers[order] = places - first
    return hashes + numbers[:, None] * _REPEAT


def _first_of_each(keys: np.ndarray, checks: np.ndarray) -> np.ndarray:
    """Return the place of the first entry of each key; the keys are sorted."""
    same = keys[1:] == keys[:-1]
    if (same & (checks[1:] != checks[:-1])).any():
        raise Collision
    return np.flatnonzero(np.concatenate([[True], ~same])[: len(keys)])


def _sums(counts: np.ndarray, first: np.ndarray) -> np.ndarray:
    return np.add.reduceat(counts, first, dtype=np.uint32) if len(first) else np.empty(0, dtype=np.uint32)


def _read(spool: IO[bytes], start: int, stop: int) -> np.ndarray:
    spool.seek(start * _ENTRY.itemsize)
    return np.frombuffer(spool.read((stop - start) * _ENTRY.itemsize), dtype=_ENTRY)


def _key_and_check(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ascontiguousarray(hashes[:, 0]), (hashes[:, 1] >> np.uint64(32)).astype(np.uint32)
