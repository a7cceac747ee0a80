"""Bootstrap confidence intervals of a metric, and of the difference between two systems.

Every metric of a test set is written as a function of how often each image is in it, a `Statistic`. The bootstrap
draws test sets of the same size with replacement (Efron 1979). Two systems are compared on the same draws (paired): a
difficult draw is difficult for both, which cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""A metric as a function of how often each of N images is in the test set: weights `(R, N)` to values `(R,)`."""

DRAWS_AT_A_TIME = 50
ROWS_AT_A_TIME = 4
"""Draws in memory. BLAS takes rows four at a time, and so gives the same last digits for 4 rows as for 50."""


class Interval(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float] | np.ndarray) -> Statistic:
    """Return the mean of one number per image."""
    column = np.asarray(values, dtype=np.float64)
    return lambda weights: weights @ column / weights.sum(axis=1)


def median_of(values: Sequence[float] | np.ndarray) -> Statistic:
    """Return the median of one number per image; for an even number of images, the mean of the middle two."""
    column = np.asarray(values, dtype=np.float64)
    order = column.argsort(kind="stable")

    def median(weights: np.ndarray) -> np.ndarray:
        seen = weights[:, order].cumsum(axis=1)
        total = seen[:, -1:]
        lower = (seen >= np.floor((total + 1) / 2)).argmax(axis=1)
        upper = (seen >= np.floor(total / 2) + 1).argmax(axis=1)
        return (column[order[lower]] + column[order[upper]]) / 2

    return median


def average_of(statistics: Sequence[Statistic]) -> Statistic:
    """Return the mean of several metrics of the same images, such as those of several captions per image."""
    return lambda weights: np.mean([each(weights) for each in statistics], axis=0)


def value_of(statistic: Statistic, images: int) -> float:
    """Return the metric of the original test set."""
    return float(statistic(np.ones((1, images)))[0])


def draws(images: int, resamples: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the bootstrap's test sets, a few at a time: `(r, images)`, how often each image was drawn."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, DRAWS_AT_A_TIME):
        count = min(DRAWS_AT_A_TIME, resamples - start)
        for first in range(0, count, ROWS_AT_A_TIME):
            weights = np.empty((min(ROWS_AT_A_TIME, count - first), images))
            for row in weights:
                row[:] = np.bincount(generator.integers(images, size=images), minlength=images)
            yield weights


def resample(
    statistics: Mapping[str, Statistic], images: int, resamples: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return each metric on each draw, `(resamples,)`; equal `images`, `resamples` and `seed` give equal draws.

    Raises:
        ValueError: there are no images, or fewer than two draws.
    """
    if images < 1 or resamples < 2:
        raise ValueError(f"a bootstrap needs images and at least 2 draws; got {images} and {resamples}.")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for weights in draws(images, resamples, seed):
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    return {name: np.concatenate(part) for name, part in parts.items()}


def interval(value: float, drawn: np.ndarray, level: float = 0.95) -> Interval:
    """Return the confidence interval of a metric from its values on the draws.

    The bounds are quantiles of the draws, shifted so that the draws' mean equals the value. For means the shift is
    close to zero; for a vocabulary it is needed, because a draw always has fewer different captions than the test set.

    Args:
        value: the metric on the whole test set.
        drawn: `(R,)`, the metric on each draw.
        level: the fraction of draws inside the interval.
    """
    low, high = np.quantile(drawn - drawn.mean() + value, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def difference(first: tuple[float, np.ndarray], second: tuple[float, np.ndarray], level: float = 0.95) -> Interval:
    """Return how much larger a metric of the first system is, with the paired interval.

    Args:
        first: value and draws of the first system.
        second: value and draws of the second system, from the same draws.
        level: the fraction of draws inside the interval.
    """
    return interval(first[0] - second[0], first[1] - second[1], level)


def compare(
    values: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Return the intervals of each system, and of the difference of each pair for the metrics that both have.

    Args:
        values: the metrics of each system, by name.
        drawn: the same metrics on the draws of the bootstrap.

    Returns:
        ``{"ours": {"CIDEr-D": {"value": ..., "low": ..., "high": ...}}, "ours - theirs": ...}``.
    """
    found: dict[str, dict[str, Any]] = {
        system: {name: interval(value, drawn[system][name])._asdict() for name, value in figures.items()}
        for system, figures in values.items()
    }
    for first, second in combinations(values, 2):
        found[f"{first} - {second}"] = {
            name: difference(
                (values[first][name], drawn[first][name]), (values[second][name], drawn[second][name])
            )._asdict()
            for name in values[first]
            if name in values[second]
        }
    return found
