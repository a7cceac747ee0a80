"""Search among embeddings by faiss, through `datasets`: exact, or in cells when there are too many."""

from __future__ import annotations

import json
import math
import os
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_distinct.data.table import read_object
from hf_distinct.files.parts import written_whole
from hf_distinct.files.seals import ALGORITHM, digest

logger = logging.get_logger(__name__)

NAME = "similarity"
TRAIN_POINTS_A_CELL = 39  # the fewest that faiss trains a cell on without a warning
CODES = 16  # centres of a piece, for fast-scan codes of 4 bits
SAMPLE = 1000
"""Queries that are searched exactly as well, to measure the recall of a search in cells."""
BLOCK = 16384
MAX_FLOATS = 2**24  # of embeddings compared in full at a time: 64 MB
TIE = 1e-6
"""Two cosines closer than this may be equal: faiss rounds the sum of their products otherwise than we do."""


class UnitRows:
    """Rows of embeddings as float32 numpy arrays of length 1, made as they are asked for.

    Args:
        embeds: (n, dim), float32 or float16; may be memory-mapped.
    """

    def __init__(self, embeds: Tensor) -> None:
        self.embeds = embeds
        self.dim = embeds.shape[1]

    def __len__(self) -> int:
        """Return n."""
        return len(self.embeds)

    def astype(self, dtype: object) -> UnitRows:
        """Return itself: `datasets` has arrays converted as a whole, where a map may be larger than the memory."""
        return self

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return rows (..., dim)."""
        chosen = self.embeds[rows if isinstance(rows, slice) else torch.from_numpy(rows)]
        return torch.nn.functional.normalize(chosen.float(), dim=-1).cpu().numpy()


@dataclass
class SearchKind:
    """How an index searches.

    Attributes:
        kind: "exact" or "ivf".
        cells: Of "ivf": into how many cells the embeddings are sorted.
        probes: Of "ivf": how many cells, the nearest ones, are searched.
        refined: Of "ivf": how many times as many entries as are asked for, the best by their codes, are compared in
            full.
        recall: Share of the true nearest that it finds, measured on a sample of queries; 1 if exact.
        recall_depth: How many nearest the recall is about.
    """

    kind: str
    cells: int = 0
    probes: int = 0
    refined: int = 1
    recall: float = 1.0
    recall_depth: int = 0


class SimilarityIndex:
    """A faiss index over E entries, by cosine.

    "exact" compares a query with every entry. "ivf" sorts the entries into about 2 sqrt(E) cells around trained
    centres and holds of each a code, a sixteenth as long as float16: 4 bits for 4 numbers of what it differs by from
    its centre (faiss's product quantisation in its fast-scan form). A query is compared by codes with the entries of
    the nearest cells, and with the best of these in full. How many cells, and how many of the best, is measured on a
    sample of the queries: the fewest by which `min_recall` is surely reached.

    Args:
        entries: (E, dim), float32 or float16, L2-normalised up to rounding; may be memory-mapped.
        kind: "exact" or "ivf".
        depth: How many nearest `min_recall` is about.
        min_recall: Share of them that "ivf" has to find.
        queries: (Q, dim), what will be asked.
        own: (Q,) the entry that a query itself is, which does not count; None if it is none.
    """

    def __init__(
        self,
        entries: Tensor,
        kind: str,
        depth: int,
        min_recall: float,
        queries: UnitRows,
        own: np.ndarray | None = None,
    ) -> None:
        self.entries, self.kind, self.queries, self.own = UnitRows(entries), kind, queries, own
        self.depth, self.min_recall = depth, min_recall
        self.search_kind = SearchKind(kind)
        self._holder = Dataset.from_dict({"entry": np.arange(len(entries))})

    def open(self, path: Path, scratch: Path | None = None) -> None:
        """Read the index from a file, or build it and write it there.

        Args:
            path: The file.
            scratch: Where it grows; see `written_whole`.

        Raises:
            ValueError: The file is no index, or one of other entries; the message names it.
        """
        if not path.is_file():
            self.build()
            self.save(path, scratch)
            return
        self._load(path)
        if self.kind == "ivf":
            known = self.search_kind
            if known.recall_depth != self.depth or known.recall < self.min_recall:
                self._choose_probes()
            self._announce()

    def build(self) -> None:
        """Make the index in memory."""
        index: Any = faiss.IndexFlatIP(self.entries.dim)
        if self.kind == "ivf":
            index = self._trained_cells()
        self._holder.add_faiss_index_from_external_arrays(
            external_arrays=self.entries, index_name=NAME, custom_index=index, batch_size=BLOCK
        )
        if self.kind == "ivf":
            self._choose_probes()
            self._announce()

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and entries (queries, count), most similar first; entry -1: no more were found."""
        if self.kind == "exact":
            return self._by_faiss(queries, count)
        wanted = count * self.search_kind.refined
        if wanted < len(self.entries):
            return self._best(queries, self._by_faiss(queries, wanted)[1], count)
        # faiss passes over an entry whose code is the worst there is, which shows if all are wanted.
        everything = np.broadcast_to(np.arange(len(self.entries)), (len(queries), len(self.entries)))
        return self._best(queries, everything, count)

    def _by_faiss(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        results = self._holder.search_batch(NAME, queries, count)
        return np.asarray(results.total_scores), np.asarray(results.total_indices)

    def _best(self, queries: np.ndarray, candidates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The most similar of each query's candidates (queries, more than count), compared in full."""
        scores = np.empty(candidates.shape, dtype=np.float32)
        size = max(1, MAX_FLOATS // (candidates.shape[1] * self.entries.dim))
        for start in range(0, len(queries), size):
            some = candidates[start : start + size]
            vectors = torch.from_numpy(self.entries[some.clip(0).reshape(-1)]).view(*some.shape, -1)
            query = torch.from_numpy(queries[start : start + size])
            scores[start : start + size] = torch.bmm(vectors, query[:, :, None]).squeeze(2)
        scores[candidates < 0] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)

    def _trained_cells(self) -> Any:
        """An empty index of cells and codes, trained on a sample of the entries."""
        num_entries, dim = len(self.entries), self.entries.dim
        cells = max(1, min(round(2 * num_entries**0.5), num_entries // TRAIN_POINTS_A_CELL))
        pieces = dim // math.gcd(dim, 4)
        index = faiss.index_factory(dim, f"IVF{cells},PQ{pieces}x4fsr", faiss.METRIC_INNER_PRODUCT)
        chosen = np.sort(np.random.default_rng(0).permutation(num_entries)[: TRAIN_POINTS_A_CELL * cells])
        # Repeated if there are too few: faiss wants so many, whatever the number of cells.
        index.train(self.entries[np.resize(chosen, max(len(chosen), TRAIN_POINTS_A_CELL * CODES))])
        return index

    def _sample(self) -> np.ndarray:
        """Rows of some queries, in order."""
        return np.sort(np.random.default_rng(1).permutation(len(self.queries))[:SAMPLE])

    def _choose_probes(self) -> None:
        """Find how many entries to compare in full, and then the fewest cells in which enough of the nearest are."""
        rows, depth = self._sample(), min(self.depth + 1, len(self.entries))
        queries, own = self.queries[rows], None if self.own is None else self.own[rows]
        true_scores = self._without_own(*nearest(queries, self.entries, depth), own)
        cells = self._holder.get_index(NAME).faiss_index.nlist

        def surely_found(probes: int, refined: int) -> float:
            """The share of the nearest that is found, less two standard errors: it should be found of others too."""
            self._use(SearchKind("ivf", cells, probes, refined, recall_depth=self.depth))
            scores = self._without_own(*self.search(queries, depth), own)
            # By score, not by number: of equal entries one is as good as another.
            found = (scores >= true_scores[:, -1:] - TIE).mean(axis=1) if true_scores.size else np.ones(len(rows))
            self.search_kind.recall = float(found.mean())
            return float(found.mean() - 2 * found.std() / len(found) ** 0.5)

        # What all cells do not show is lost by the codes: that may be half of what may be missed.
        refined = 1
        while surely_found(cells, refined) < (1 + self.min_recall) / 2 and refined * depth < len(self.entries):
            refined *= 2
        fewest = 1 + bisect_left(range(1, cells), self.min_recall, key=lambda probes: surely_found(probes, refined))
        surely_found(fewest, refined)

    def _use(self, search_kind: SearchKind) -> None:
        self.search_kind = search_kind
        if self.kind == "ivf":
            self._holder.get_index(NAME).faiss_index.nprobe = search_kind.probes

    def _announce(self) -> None:
        """Log how it searches, and how long that will take by the time that a sample takes."""
        how, queries = self.search_kind, self.queries[self._sample()]
        start = time.perf_counter()
        self.search(queries, min(how.recall_depth + 1, len(self.entries)))
        seconds = (time.perf_counter() - start) * len(self.queries) / len(queries)
        logger.info(
            f"Searching {how.probes} of {how.cells} cells, {how.refined} times as many as wanted compared in full: "
            f"recall@{how.recall_depth} {how.recall:.3f}, about {seconds / 60:.1f} minutes for {len(self.queries)} "
            "queries."
        )

    def _without_own(self, scores: np.ndarray, entries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Scores (queries, depth) of falling size, a query's own entry left out."""
        if own is not None:
            scores = np.where(entries == own[:, None], -np.inf, scores)
        return -np.sort(-scores, axis=1)[:, : min(self.depth, len(self.entries) - (own is not None))]

    def save(self, path: Path, scratch: Path | None = None) -> None:
        """Write the index, whole or not at all, and, as JSON beside it, how it searches and what its digest is."""
        with written_whole(path, scratch) as temporary:
            self._holder.save_faiss_index(NAME, str(temporary))
            about = asdict(self.search_kind) | {ALGORITHM: digest(temporary)}
            with written_whole(path.with_suffix(".json"), scratch) as beside:
                beside.write_text(json.dumps(about, indent=1))

    def _load(self, path: str | os.PathLike[str]) -> None:
        try:
            about = read_object(Path(path).with_suffix(".json"))
            wanted = about.pop(ALGORITHM, None)  # indexes of the first version have none
            search_kind = SearchKind(**about)
            if wanted is not None and digest(Path(path)) != wanted:
                raise ValueError("its bytes have changed since it was written; remove it, and a new one is made")
            self._holder.load_faiss_index(NAME, str(path))  # checks the number of entries
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} is no index of these {len(self.entries)} embeddings: {error}") from error
        if self._holder.get_index(NAME).faiss_index.d == self.entries.dim:
            self._use(search_kind)
            if self._knows_its_entries():
                return
        self._holder.drop_index(NAME)
        raise ValueError(
            f"{str(path)!r} is an index of other embeddings: the data set, the pictures or the scorer differ. Remove "
            "it, and a new one is made."
        )

    def _knows_its_entries(self) -> bool:
        """Whether a search for some entries finds them, or others just as similar; in cells, most of them."""
        rows = np.linspace(0, len(self.entries) - 1, num=min(16, len(self.entries)), dtype=np.int64)
        queries = self.entries[rows]
        found = self.search(queries, 1)[1][:, 0]
        known = (found >= 0) & ((queries * self.entries[found.clip(0)]).sum(axis=1) > 0.999)
        return bool(known.all() if self.kind == "exact" else known.mean() > 0.5)


def nearest(queries: np.ndarray, entries: UnitRows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and entries (queries, count) most similar to queries (queries, dim), by looking at every entry."""
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(entries), BLOCK):
        block = torch.from_numpy(queries) @ torch.from_numpy(entries[start : start + BLOCK]).T
        block_numbers = torch.arange(start, start + block.shape[1]).expand(len(queries), -1)
        scores, places = torch.cat([scores, block], dim=1).topk(min(count, scores.shape[1] + block.shape[1]), dim=1)
        numbers = torch.cat([numbers, block_numbers], dim=1).gather(1, places)
    return scores.numpy(), numbers.numpy()
