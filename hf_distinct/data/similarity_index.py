"""Similarity search with faiss through `datasets`: exact, or in cells for many embeddings."""

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
TRAIN_POINTS_A_CELL = 39  # faiss warns if it trains with fewer points per cell
CODES = 16  # centroids per subvector, for fast-scan codes of 4 bits
SAMPLE = 1000
"""Queries that are also searched exactly, to measure the recall of a search in cells."""
BLOCK = 16384
MAX_FLOATS = 2**24  # numbers in embeddings that are compared exactly at a time: 64 MB
TIE = 1e-6
"""Cosines closer than this may be equal: faiss rounds sums of products differently."""


class UnitRows:
    """Rows of embeddings as normalised float32 numpy arrays, computed on demand.

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
        """Return itself: `datasets` would convert the whole array, which may exceed the memory."""
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
        cells: for "ivf": the number of cells.
        probes: for "ivf": the number of nearest cells to search.
        refined: for "ivf": how many times more entries than requested, the best by their codes, are compared exactly.
        recall: fraction of the true nearest entries found, measured on a sample of queries; 1 if exact.
        recall_depth: the number of nearest entries that the recall refers to.
    """

    kind: str
    cells: int = 0
    probes: int = 0
    refined: int = 1
    recall: float = 1.0
    recall_depth: int = 0


class SimilarityIndex:
    """A faiss index of E entries, by cosine similarity.

    "exact" compares a query with every entry. "ivf" divides the entries into about 2 sqrt(E) cells around trained
    centroids and stores a code for each, a sixteenth of the size of float16: 4 bits for 4 numbers of the difference
    from the centroid (faiss's product quantisation in its fast-scan form). A query is compared by codes with the
    entries in the nearest cells, and exactly with the best of these. Both numbers are measured on a sample of the
    queries: the smallest ones that reliably reach `min_recall`.

    Args:
        entries: (E, dim), float32 or float16, L2-normalised up to rounding; may be memory-mapped.
        kind: "exact" or "ivf".
        depth: number of nearest entries for `min_recall`.
        min_recall: fraction of them that "ivf" must find.
        queries: (Q, dim), the queries of later searches.
        own: (Q,) the entry of each query itself, which is ignored; None if queries are not entries.
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
        """Read the index from a file, or build it and write the file.

        Args:
            path: the file.
            scratch: folder of the temporary file; see `written_whole`.

        Raises:
            ValueError: the file is not an index, or has other entries; the message names it.
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
        """Build the index in memory."""
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
        """Return cosines and entries (queries, count), most similar first; entry -1 if no more were found."""
        if self.kind == "exact":
            return self._by_faiss(queries, count)
        wanted = count * self.search_kind.refined
        if wanted < len(self.entries):
            return self._best(queries, self._by_faiss(queries, wanted)[1], count)
        # faiss skips an entry with the worst possible code, which matters if all entries are requested.
        everything = np.broadcast_to(np.arange(len(self.entries)), (len(queries), len(self.entries)))
        return self._best(queries, everything, count)

    def _by_faiss(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        results = self._holder.search_batch(NAME, queries, count)
        return np.asarray(results.total_scores), np.asarray(results.total_indices)

    def _best(self, queries: np.ndarray, candidates: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the most similar of each query's candidates (queries, more than count), by exact comparison."""
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
        """Return an empty index of cells and codes, trained on a sample of the entries."""
        num_entries, dim = len(self.entries), self.entries.dim
        cells = max(1, min(round(2 * num_entries**0.5), num_entries // TRAIN_POINTS_A_CELL))
        pieces = dim // math.gcd(dim, 4)
        index = faiss.index_factory(dim, f"IVF{cells},PQ{pieces}x4fsr", faiss.METRIC_INNER_PRODUCT)
        chosen = np.sort(np.random.default_rng(0).permutation(num_entries)[: TRAIN_POINTS_A_CELL * cells])
        # Repeated if there are too few: faiss requires this many, whatever the number of cells.
        index.train(self.entries[np.resize(chosen, max(len(chosen), TRAIN_POINTS_A_CELL * CODES))])
        return index

    def _sample(self) -> np.ndarray:
        """Return the rows of some queries, in order."""
        return np.sort(np.random.default_rng(1).permutation(len(self.queries))[:SAMPLE])

    def _choose_probes(self) -> None:
        """Choose how many entries to compare exactly, and then the smallest sufficient number of cells."""
        rows, depth = self._sample(), min(self.depth + 1, len(self.entries))
        queries, own = self.queries[rows], None if self.own is None else self.own[rows]
        true_scores = self._without_own(*nearest(queries, self.entries, depth), own)
        cells = self._holder.get_index(NAME).faiss_index.nlist

        def surely_found(probes: int, refined: int) -> float:
            """Return the fraction of nearest entries found, minus two standard errors."""
            self._use(SearchKind("ivf", cells, probes, refined, recall_depth=self.depth))
            scores = self._without_own(*self.search(queries, depth), own)
            # By score, not by number: equal entries are interchangeable.
            found = (scores >= true_scores[:, -1:] - TIE).mean(axis=1) if true_scores.size else np.ones(len(rows))
            self.search_kind.recall = float(found.mean())
            return float(found.mean() - 2 * found.std() / len(found) ** 0.5)

        # What is missed when all cells are searched is due to the codes; they may cause half of the allowed misses.
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
        """Log the search method and an estimate of its duration from a sample."""
        how, queries = self.search_kind, self.queries[self._sample()]
        start = time.perf_counter()
        self.search(queries, min(how.recall_depth + 1, len(self.entries)))
        seconds = (time.perf_counter() - start) * len(self.queries) / len(queries)
        logger.info(
            f"Searching {how.probes} of {how.cells} cells; {how.refined} times the needed entries compared exactly: "
            f"recall@{how.recall_depth} {how.recall:.3f}, about {seconds / 60:.1f} minutes for {len(self.queries)} "
            "queries."
        )

    def _without_own(self, scores: np.ndarray, entries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Return scores (queries, depth) in descending order, without each query's own entry."""
        if own is not None:
            scores = np.where(entries == own[:, None], -np.inf, scores)
        return -np.sort(-scores, axis=1)[:, : min(self.depth, len(self.entries) - (own is not None))]

    def save(self, path: Path, scratch: Path | None = None) -> None:
        """Write the index, completely or not at all, and a JSON file with its search method and digest."""
        with written_whole(path, scratch) as temporary:
            self._holder.save_faiss_index(NAME, str(temporary))
            about = asdict(self.search_kind) | {ALGORITHM: digest(temporary)}
            with written_whole(path.with_suffix(".json"), scratch) as description:
                description.write_text(json.dumps(about, indent=1))

    def _load(self, path: str | os.PathLike[str]) -> None:
        try:
            about = read_object(Path(path).with_suffix(".json"))
            wanted = about.pop(ALGORITHM, None)  # the first version wrote none
            search_kind = SearchKind(**about)
            if wanted is not None and digest(Path(path)) != wanted:
                raise ValueError("it has changed since it was written; remove it, and a new one is created")
            self._holder.load_faiss_index(NAME, str(path))  # checks the number of entries
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} is no index of these {len(self.entries)} embeddings: {error}") from error
        if self._holder.get_index(NAME).faiss_index.d == self.entries.dim:
            self._use(search_kind)
            if self._knows_its_entries():
                return
        self._holder.drop_index(NAME)
        raise ValueError(
            f"{str(path)!r} is an index of other embeddings: the dataset, the images or the scorer differ. Remove "
            "it, and a new one is created."
        )

    def _knows_its_entries(self) -> bool:
        """Whether a search for some entries finds them, or equally similar ones; in cells, for most of them."""
        rows = np.linspace(0, len(self.entries) - 1, num=min(16, len(self.entries)), dtype=np.int64)
        queries = self.entries[rows]
        found = self.search(queries, 1)[1][:, 0]
        known = (found >= 0) & ((queries * self.entries[found.clip(0)]).sum(axis=1) > 0.999)
        return bool(known.all() if self.kind == "exact" else known.mean() > 0.5)


def nearest(queries: np.ndarray, entries: UnitRows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and entries (queries, count) most similar to queries (queries, dim), by comparing all entries."""
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(entries), BLOCK):
        block = torch.from_numpy(queries) @ torch.from_numpy(entries[start : start + BLOCK]).T
        block_numbers = torch.arange(start, start + block.shape[1]).expand(len(queries), -1)
        scores, places = torch.cat([scores, block], dim=1).topk(min(count, scores.shape[1] + block.shape[1]), dim=1)
        numbers = torch.cat([numbers, block_numbers], dim=1).gather(1, places)
    return scores.numpy(), numbers.numpy()
