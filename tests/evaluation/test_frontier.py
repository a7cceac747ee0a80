import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.evaluation.frontier import frontier, reach

coordinates = st.integers(-5, 5).map(float)
clouds = st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=8)


def test_corners_by_hand():
    # (1, 2.4) lies under the line from (0, 3) to (2, 2): 2.5 there. (0.5, 1) is less of both.
    assert frontier([(2, 2), (0.5, 1), (0, 3), (1, 2.4), (3, 0)]) == [(0, 3), (2, 2), (3, 0)]
    assert frontier([(1, 2.6), (0, 3), (2, 2)]) == [(0, 3), (1, 2.6), (2, 2)]
    assert frontier([(1, 1), (1, 2), (0, 2)]) == [(1, 2)]


def test_reach_by_hand():
    points = [(0, 3), (2, 2), (3, 0)]
    assert [reach(points, x) for x in (-1, 0, 1, 2, 2.5, 3)] == [3, 3, 2.5, 2, 1, 0]
    assert reach(points, 3.1) == -math.inf
    with pytest.raises(ValueError, match="needs points"):
        reach([], 0)


@settings(deadline=None)
@given(clouds, coordinates)
def test_reach_is_the_best_mix_of_two_points(points, x):
    best = -math.inf
    for left, high in points:
        for right, low in points:
            if right >= x:
                best = max(best, low)
                if left < x:
                    best = max(best, high + (low - high) * (x - left) / (right - left))
    assert reach(points, x) == pytest.approx(best)
