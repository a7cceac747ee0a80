"""Search among embeddings by faiss, through `datasets`: exact, or in cells when there are too many."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_distinct.data.parts import written_whole

logger = logging.get_logger(__name__)

NAME = "similarity"
TRAIN_POINTS_A_CELL = 39  # the fewest that faiss trains a cell on without a warning
SAMPLE = 500
"""Queries that are searched exactly as well, to measure the recall of a search in cells."""
FIRST_PROBES = 8
BLOCK = 16384
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
        recall: Share of the true nearest that it finds, measured on a sample of queries; 1 if exact.
        recall_depth: How many nearest the recall is about.
    """

    kind: str
    cells: int = 0
    probes: int = 0
    recall: float = 1.0
    recall_depth: int = 0


class SimilarityIndex:
    """A faiss index over E entries, by cosine.

    "exact" compares a query with every entry. "ivf" sorts the entries into about 2 sqrt(E) cells around trained
    centres, holds them as float16, and compares a query with those in the cells nearest to it: as many cells as
    `min_recall` takes, measured on a sample of the queries.

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
        known = self.search_kind
        if self.kind == "ivf" and (known.recall_depth != self.depth or known.recall < self.min_recall):
            self._choose_probes(self._holder.get_index(NAME).faiss_index)

    def build(self) -> None:
        """Make the index in memory."""
        num_entries, dim = len(self.entries), self.entries.dim
        index: Any = faiss.IndexFlatIP(dim)
        if self.kind == "ivf":
            cells = max(1, min(round(2 * num_entries**0.5), num_entries // TRAIN_POINTS_A_CELL))
            index = faiss.index_factory(dim, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
            chosen = np.random.default_rng(0).permutation(num_entries)[: TRAIN_POINTS_A_CELL * cells]
            index.train(self.entries[np.sort(chosen)])
        self._holder.add_faiss_index_from_external_arrays(
            external_arrays=self.entries, index_name=NAME, custom_index=index, batch_size=BLOCK
        )
        if self.kind == "ivf":
            self._choose_probes(index)

    def _choose_probes(self, index: Any) -> None:
        """Search more and more cells until enough of the true nearest are found."""
        rows = np.sort(np.random.default_rng(1).permutation(len(self.queries))[:SAMPLE])
        queries, depth = self.queries[rows], min(self.depth + 1, len(self.entries))
        own = None if self.own is None else self.own[rows]
        true_scores = self._without_own(*nearest(queries, self.entries, depth), own)
        probes = min(FIRST_PROBES, index.nlist)
        while True:
            index.nprobe = probes
            found = index.search(queries, depth)[1]
            scores = np.einsum(
                "qcd,qd->qc", self.entries[found.clip(0).reshape(-1)].reshape(*found.shape, -1), queries
            )
            scores = self._without_own(np.where(found >= 0, scores, -np.inf), found, own)
            # By score, not by number: of equal entries one is as good as another.
            hits = (scores >= true_scores[:, -1:] - TIE).sum()
            recall = float(hits / max(true_scores.size, 1))
            self.search_kind = SearchKind("ivf", index.nlist, probes, min(recall, 1.0), self.depth)
            if recall >= self.min_recall or probes == index.nlist:
                return
            probes = min(2 * probes, index.nlist)

    def _without_own(self, scores: np.ndarray, entries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        """Scores (queries, depth) of falling size, a query's own entry left out."""
        if own is not None:
            scores = np.where(entries == own[:, None], -np.inf, scores)
        return -np.sort(-scores, axis=1)[:, : min(self.depth, len(self.entries) - (own is not None))]

    def search(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and entries (queries, count), most similar first; entry -1: no more were found."""
        results = self._holder.search_batch(NAME, queries, count)
        return np.asarray(results.total_scores), np.asarray(results.total_indices)

    def save(self, path: Path, scratch: Path | None = None) -> None:
        """Write the index, whole or not at all, and before it, as JSON beside it, how it searches."""
        with written_whole(path.with_suffix(".json"), scratch) as temporary:
            temporary.write_text(json.dumps(asdict(self.search_kind), indent=1))
        with written_whole(path, scratch) as temporary:
            self._holder.save_faiss_index(NAME, str(temporary))

    def _load(self, path: str | os.PathLike[str]) -> None:
        try:
            self.search_kind = SearchKind(**json.loads(Path(path).with_suffix(".json").read_text()))
            self._holder.load_faiss_index(NAME, str(path))  # checks the number of entries
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} is no index of these {len(self.entries)} embeddings: {error}") from error
        index = self._holder.get_index(NAME).faiss_index
        if index.d != self.entries.dim or not self._knows_its_entries():
            self._holder.drop_index(NAME)
            raise ValueError(
                f"{str(path)!r} is an index of other embeddings than these: of another data set, of other pictures or "
                "under another scorer. Remove it, and it is made anew."
            )

    def _knows_its_entries(self) -> bool:
        """Whether a search for some entries finds them, or others just as similar."""
        rows = np.linspace(0, len(self.entries) - 1, num=min(16, len(self.entries)), dtype=np.int64)
        queries = self.entries[rows]
        found = self.search(queries, 1)[1][:, 0]
        return bool((found >= 0).all() and ((queries * self.entries[found]).sum(axis=1) > 0.999).all())


def nearest(queries: np.ndarray, entries: UnitRows, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and entries (queries, count) most similar to queries (queries, dim), by looking at every entry."""
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(entries), BLOCK):
        block = torch.from_numpy(queries) @ torch.from_numpy(entries[start : start + BLOCK]).T
        block_numbers = torch.arange(start, start + block.shape[1]).expand(len(queries), -1)
        scores, places = torch.cat([scores, block], dim=1).topk(min(count, scores.shape[1] + block.shape[1]), dim=1)
        numbers = torch.cat([numbers, block_numbers], dim=1).gather(1, places)
    return scores.numpy(), numbers.numpy()
