"""The result of mining: neighbours by rank, their similarities, and rejected candidates."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, List, Value
from torch import Tensor
from transformers.utils import logging

from hf_distinct.data.selections import with_column
from hf_distinct.data.table import parse_json
from hf_distinct.files.parts import read_tensors, write_tensors

logger = logging.get_logger(__name__)

FILE = "neighbours.safetensors"
"""File name in the output folder of `hf-distinct mine`."""
FOLDER_NAME = re.compile(r"[\w-]{0,100}", re.ASCII)
"""Pattern of the folder name of an embedding cache."""
REASONS = ("same image id", "too similar", "too dissimilar")


@dataclass
class Neighbours:
    """Mined neighbours of N images, ranks 1 to `depth`, of which the ranks from `first_rank` on are taken.

    Attributes:
        rows: (N, depth) int64, most similar first; -1 where there are fewer.
        similarities: (N, depth) float32 cosines; NaN where there are fewer.
        rejected: (N, 3) bool: whether candidates were rejected because of the same image id (other than the image
            itself), too high similarity, or too low similarity.
        first_rank: the first rank taken.
        searched: how the search was done: its settings, `kind`, `cells`, `probes`, measured `recall`.
        embeddings: name of the embedding cache that `rows` refers to; empty without a cache.
    """

    rows: np.ndarray
    similarities: np.ndarray
    rejected: np.ndarray
    first_rank: int = 1
    searched: dict[str, Any] = field(default_factory=dict)
    embeddings: str = ""

    @property
    def taken(self) -> np.ndarray:
        """The ranks taken: (N, depth - first_rank + 1), -1 where there are fewer."""
        return self.rows[:, self.first_rank - 1 :]

    def add_to(self, dataset: Dataset, count: int | None = None) -> Dataset:
        """Add the column `neighbours`: lists of int rows, shorter where there are fewer; an existing one is replaced.

        Args:
            dataset: the N rows.
            count: number of neighbours per row, most similar first; None for all that are taken.

        Raises:
            ValueError: the number of rows differs, or fewer neighbours than `count` were mined.
        """
        if len(self.rows) != len(dataset):
            raise ValueError(f"Neighbours of {len(self.rows)} images do not fit a dataset of {len(dataset)} rows.")
        if (count or 0) > self.taken.shape[1]:
            raise ValueError(
                f"{count} neighbours are needed, {self.taken.shape[1]} were mined: mine with num_neighbours={count}."
            )
        taken = self.taken[:, :count]
        there = taken >= 0
        offsets = np.concatenate([[0], there.sum(axis=1).cumsum()])
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(taken[there], pa.int64()))
        return with_column(dataset, "neighbours", column, List(Value("int64")))

    def statistics(self) -> dict[str, Any]:
        """Return similarity by rank (mean, 5th, 50th and 95th percentile), fractions with rejects, and counts."""
        by_rank = {}
        for rank, column in enumerate(self.similarities.T, start=1):
            if found := column[~np.isnan(column)].tolist():
                low, middle, high = np.percentile(found, [5, 50, 95]).tolist()
                by_rank[f"rank {rank}"] = {"mean": float(np.mean(found)), "5 %": low, "median": middle, "95 %": high}
        return {
            "images": len(self.rows),
            "ranks taken": [self.first_rank, self.rows.shape[1]],
            "images with fewer neighbours": int((self.taken < 0).any(axis=1).sum()),
            "similarity": by_rank,
            "share of images with rejected candidates": dict(
                zip(REASONS, self.rejected.mean(axis=0).tolist(), strict=True)
            ),
            "search": self.searched,
        }

    def log_summary(self) -> None:
        """Log similarity by rank and the rejected fraction, and warn if images have too few neighbours."""
        found = self.statistics()
        taken = range(self.first_rank, self.rows.shape[1] + 1)
        means = [
            f"rank {rank}: {found['similarity'][f'rank {rank}']['mean']:.3f}"
            for rank in taken
            if f"rank {rank}" in found["similarity"]
        ]
        logger.info(
            f"Mined neighbours of {len(self.rows)} images; mean similarity by rank: {', '.join(means) or 'none'}; "
            f"near duplicates rejected for {self.rejected[:, 1].mean():.1%} of the images."
        )
        if fewer := found["images with fewer neighbours"]:
            logger.warning(f"{fewer} of {len(self.rows)} images have fewer than {len(taken)} neighbours.")

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and metadata of a safetensors file."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ("rows", "similarities", "rejected")}
        about = {"first_rank": self.first_rank, "searched": self.searched, "embeddings": self.embeddings}
        return tensors, {"about": json.dumps(about)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Neighbours:
        """Undo `to_tensors`; raises KeyError, TypeError or ValueError for anything else."""
        rows, similarities, rejected = (tensors[name].numpy() for name in ("rows", "similarities", "rejected"))
        about = parse_json(metadata["about"].encode("utf-8", "surrogatepass"), "about")
        found = cls(rows, similarities, rejected, **about)
        for problem in found._problems():
            raise ValueError(problem)
        return found

    def _problems(self) -> Iterator[str]:
        kinds = [each.dtype.kind for each in (self.rows, self.similarities, self.rejected)]
        shapes = [each.shape for each in (self.rows, self.similarities, self.rejected)]
        if kinds != ["i", "f", "b"] or len(shapes[0]) != 2 or shapes[1:] != [shapes[0], (shapes[0][0], len(REASONS))]:
            yield f"arrays of kinds {kinds} and shapes {shapes} are not rows, similarities and rejects"
        elif type(self.first_rank) is not int or not 1 <= self.first_rank <= max(shapes[0][1], 1):
            yield f"first_rank is {self.first_rank!r}, but {shapes[0][1]} ranks were mined"
        elif not isinstance(self.embeddings, str) or not FOLDER_NAME.fullmatch(self.embeddings):
            yield f"embeddings is {self.embeddings!r}, but should be the name of a folder next to it"

    @classmethod
    def join(cls, parts: Sequence[Neighbours]) -> Neighbours:
        """Concatenate parts of consecutive rows."""
        rows, similarities, rejected = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "similarities", "rejected")
        )
        return cls(rows, similarities, rejected, parts[0].first_rank, parts[0].searched, parts[0].embeddings)

    def save(self, path: str | os.PathLike[str], scratch: Path | None = None) -> None:
        """Write a safetensors file, completely or not at all; `scratch` is the folder of the temporary file."""
        write_tensors(Path(path), *self.to_tensors(), scratch)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *embeddings: str) -> Neighbours:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            embeddings: acceptable names of the cache that `rows` refers to; any name by default.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it contains no neighbours, or those of other embeddings.
        """
        try:
            found = cls.from_tensors(*read_tensors(Path(path)))
        except FileNotFoundError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} contains no mined neighbours: {error!r}") from error
        if embeddings and found.embeddings not in embeddings:
            raise ValueError(
                f"{str(path)!r} contains neighbours of another dataset, other images or another scorer: it belongs to "
                f"{found.embeddings!r}, but {embeddings[0]!r} is needed. Mine again: `hf-distinct mine`."
            )
        return found
