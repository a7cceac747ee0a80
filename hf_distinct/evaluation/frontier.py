"""Where a system stands beside others that trade one figure for another.

A captioner that writes each caption by one of two systems, drawn at random, has a mean on the line between theirs. So
what a set of systems reaches is the upper hull of their points, not only the points.
"""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the corners of what points ``(x, y)`` and their mixes reach, where more is better of both.

    They go from the point of the largest y to that of the largest x; between them y falls, and ever faster.

    Raises:
        ValueError: there are no points.
    """
    if not points:
        raise ValueError("a frontier needs points.")
    hull: list[Point] = []
    for point in sorted(points, key=lambda each: (-each[0], -each[1])):  # from the largest x to the left
        if hull and point[1] <= hull[-1][1]:
            continue  # less of both
        while len(hull) > 1 and _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull[::-1]


def reach(points: Sequence[Point], x: float) -> float:
    """Return the largest y that a mix of points has at ``x`` or more; minus infinity where none gets so far.

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
    """Whether the second lies on or under the line from the first to the third, the first being rightmost."""
    return (second[0] - third[0]) * (first[1] - third[1]) >= (second[1] - third[1]) * (first[0] - third[0])
