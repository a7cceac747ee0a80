"""Batches of similar images: with mutual neighbours in one batch, the batch itself holds the hard negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class HardBatchSampler(Sampler[int]):
    """Orders rows so that each run of `batch_size` rows is built from mutual neighbours.

    A batch begins with a row drawn at random among those left. Then come, nearest in the graph first, rows left that
    are mutual neighbours of one that is in it (each names the other), then rows that are neighbours in one direction;
    where nothing is left around, another is drawn. Each row comes once an epoch. The order depends on `seed` and
    `epoch` alone: whoever trains sets `epoch` before each. There is no `set_epoch`, as Accelerate would call it
    with 0 in a run that is resumed within an epoch.

    Args:
        neighbours: For each row its neighbours, as `mine_neighbours` adds them.
        batch_size: Rows that are seen together, over all processes.
        seed: Of the draw.
    """

    def __init__(self, neighbours: Sequence[Sequence[int]], batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} should be at least 1.")
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self._mutual, self._others = _graph(neighbours)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._mutual)

    def __iter__(self) -> Iterator[int]:
        """Yield each row once."""
        left = np.ones(len(self), dtype=bool)
        drawn = np.random.default_rng([self.seed, self.epoch]).permutation(len(self)).tolist()
        place = 0
        while place < len(drawn):
            batch: list[int] = []
            while len(batch) < self.batch_size and place < len(drawn):
                row = drawn[place]
                if left[row]:
                    self._gather(row, left, batch)
                else:
                    place += 1
            yield from batch

    def _gather(self, start: int, left: np.ndarray, batch: list[int]) -> None:
        """Add a row and what is around it to the batch, until it is full or nothing is left around."""
        first = len(batch)
        left[start] = False
        batch.append(start)
        for edges in (self._mutual, self._others):
            reached = first
            while reached < len(batch):
                for row in edges[batch[reached]]:
                    if left[row] and len(batch) < self.batch_size:
                        left[row] = False
                        batch.append(row)
                reached += 1


def _graph(neighbours: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return for each row its mutual neighbours, in their order, and all that are linked to it in either direction."""
    known = [set(rows) for rows in neighbours]
    mutual = [[each for each in rows if row in known[each]] for row, rows in enumerate(neighbours)]
    linked = [list(rows) for rows in neighbours]
    for row, rows in enumerate(neighbours):
        for each in rows:
            if row not in known[each]:
                linked[each].append(row)
    return mutual, linked
