"""Batches of similar images: mutual neighbours in one batch are hard negatives for each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class HardBatchSampler(Sampler[int]):
    """Orders rows so that each run of `batch_size` rows consists of mutual neighbours, as far as possible.

    A batch begins with a random remaining row. Then remaining rows are added that are mutual neighbours of a row in
    the batch (each lists the other), nearest in the graph first, then neighbours in one direction. If none remain,
    another random row is drawn. Each row occurs once per epoch. The order depends on `seed` and `epoch` only; set
    `epoch` before each epoch. There is no `set_epoch`, because Accelerate would call it with 0 in a run resumed within
    an epoch.

    Args:
        neighbours: the neighbours of each row, as from `mine_neighbours`.
        batch_size: rows per batch, over all processes.
        seed: seed of the draw.
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
        """Add a row and its surroundings to the batch, until the batch is full or none remain."""
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
    """Return for each row its mutual neighbours, in order, and all rows linked to it in either direction."""
    known = [set(rows) for rows in neighbours]
    mutual = [[each for each in rows if row in known[each]] for row, rows in enumerate(neighbours)]
    linked = [list(rows) for rows in neighbours]
    for row, rows in enumerate(neighbours):
        for each in rows:
            if row not in known[each]:
                linked[each].append(row)
    return mutual, linked
