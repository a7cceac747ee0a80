"""Pareto frontiers of systems that trade one metric for another.

A captioner that uses one of two systems at random for each caption has a mean on the line between theirs. So a set of
systems reaches the upper convex hull of their points, not only the points.
"""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the corners of the frontier of points ``(x, y)`` and their mixtures; larger is better for both.

    They are ordered from the largest y to the largest x.

    Raises:
        ValueError: there are no points.
    """
    if not points:
        raise ValueError("a frontier needs points.")
    hull: list[Point] = []
    for point in sorted(points, key=lambda each: (-each[0], -each[1])):  # from the largest x downwards
        if hull and point[1] <= hull[-1][1]:
            continue  # worse in both
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull[::-1]


def reach(points: Sequence[Point], x: float) -> float:
    """Return the largest y that a mixture of points has at ``x`` or more; minus infinity beyond the frontier.

    Raises:
        ValueError: there are no points.
    """
    corners = frontier(points)
    if x <= corners[0][0]:
        return corners[0][1]
    for (left, high), (right, low) in zip(corners, corners[1:], strict=False):
        if x <= right:
            return high + (low - high) * (x - left) / (right - left)
    return float("-inf")


def _turns_left(first: Point, second: Point, third: Point) -> bool:
    """Whether the second lies on or below the line from the first to the third; the first is rightmost."""
    return (second[0] - third[0]) * (first[1] - third[1]) >= (second[1] - third[1]) * (first[0] - third[0])
