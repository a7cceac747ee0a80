"""What mining found: neighbours by rank, their similarities, and what was left out."""

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
from datasets import Dataset, Value
from torch import Tensor
from transformers.utils import logging

from hf_distinct.data.table import parse_json
from hf_distinct.files.parts import read_tensors, write_tensors

logger = logging.get_logger(__name__)

FILE = "neighbours.safetensors"
"""What recipes/mine.py calls it in its folder."""
FOLDER_NAME = re.compile(r"[\w-]*", re.ASCII)
"""What a cache of embeddings is called, beside the file that names it."""
REASONS = ("same image id", "too similar", "too dissimilar")


@dataclass
class Neighbours:
    """Mined neighbours of N images, ranks 1 to `depth`; of them the ranks from `first_rank` on are taken.

    Attributes:
        rows: (N, depth) int64, most similar first; -1 where there are fewer.
        similarities: (N, depth) float32 cosines; NaN where there are fewer.
        rejected: (N, 3) bool: whether candidates were left out that have the same image id (an image itself does not
            count), are too similar, are too dissimilar.
        first_rank: The first rank taken.
        searched: How the search went: its settings, `kind`, `cells`, `probes`, measured `recall`.
        embeddings: The name of the cache that the rows are numbers of; empty without one.
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
            dataset: The N rows.
            count: How many of those taken, the most similar first; None: all.

        Raises:
            ValueError: Another number of rows, or fewer were mined than `count`.
        """
        if len(self.rows) != len(dataset):
            raise ValueError(f"Neighbours of {len(self.rows)} images do not fit a data set of {len(dataset)} rows.")
        if (count or 0) > self.taken.shape[1]:
            raise ValueError(
                f"{count} neighbours are wanted, {self.taken.shape[1]} were mined: mine with num_neighbours={count}."
            )
        taken = self.taken[:, :count]
        there = taken >= 0
        offsets = np.concatenate([[0], there.sum(axis=1).cumsum()])
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(taken[there], pa.int64()))
        if "neighbours" in dataset.column_names:
            dataset = dataset.remove_columns("neighbours")
        return dataset.add_column("neighbours", column, feature=[Value("int64")])

    def statistics(self) -> dict[str, Any]:
        """Return similarity by rank (mean, 5th, 50th and 95th percentile), shares of images with rejects, counts."""
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
        """Log similarity by rank and the share rejected, and warn where images got fewer neighbours than wanted."""
        found = self.statistics()
        taken = range(self.first_rank, self.rows.shape[1] + 1)
        means = [
            f"rank {rank}: {found['similarity'][f'rank {rank}']['mean']:.3f}"
            for rank in taken
            if f"rank {rank}" in found["similarity"]
        ]
        logger.info(
            f"Mined neighbours of {len(self.rows)} images; mean similarity by rank: {', '.join(means) or 'none'}; "
            f"near duplicates left out for {self.rejected[:, 1].mean():.1%} of the images."
        )
        if fewer := found["images with fewer neighbours"]:
            logger.warning(f"{fewer} of {len(self.rows)} images got fewer than {len(taken)} neighbours.")

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return it as tensors and metadata of a safetensors file."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ("rows", "similarities", "rejected")}
        about = {"first_rank": self.first_rank, "searched": self.searched, "embeddings": self.embeddings}
        return tensors, {"about": json.dumps(about)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Neighbours:
        """Turn the result of `to_tensors` back; raises KeyError, TypeError or ValueError if it is something else."""
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
            yield f"arrays of kinds {kinds} and shapes {shapes} are no rows, similarities and rejects"
        elif type(self.first_rank) is not int or not 1 <= self.first_rank <= max(shapes[0][1], 1):
            yield f"first_rank is {self.first_rank!r}, where {shapes[0][1]} ranks were mined"
        elif not isinstance(self.embeddings, str) or not FOLDER_NAME.fullmatch(self.embeddings):
            yield f"embeddings is {self.embeddings!r}, where the name of a folder beside it is expected"

    @classmethod
    def join(cls, parts: Sequence[Neighbours]) -> Neighbours:
        """Put parts, of consecutive rows, one below the other."""
        rows, similarities, rejected = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "similarities", "rejected")
        )
        return cls(rows, similarities, rejected, parts[0].first_rank, parts[0].searched, parts[0].embeddings)

    def save(self, path: str | os.PathLike[str], scratch: Path | None = None) -> None:
        """Write to a safetensors file, whole or not at all; it grows in `scratch`, or beside its place."""
        write_tensors(Path(path), *self.to_tensors(), scratch)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *embeddings: str) -> Neighbours:
        """Read what `save` wrote.

        Args:
            path: The file.
            embeddings: The names of the cache that its rows should be numbers of, to be sure; none: any.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds no neighbours, or those of other embeddings.
        """
        try:
            found = cls.from_tensors(*read_tensors(Path(path)))
        except FileNotFoundError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} holds no mined neighbours: {error!r}") from error
        if embeddings and found.embeddings not in embeddings:
            raise ValueError(
                f"{str(path)!r} holds neighbours of another data set, other pictures or another scorer: it was mined "
                f"in {found.embeddings!r}, where {embeddings[0]!r} is wanted. Mine anew: `hf-distinct mine`."
            )
        return found
