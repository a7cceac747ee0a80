import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.data.hard_batches import HardBatchSampler


def batches(sampler: HardBatchSampler) -> list[list[int]]:
    rows = list(sampler)
    return [rows[i : i + sampler.batch_size] for i in range(0, len(rows), sampler.batch_size)]


def test_groups_of_mutual_neighbours_are_the_batches():
    # Three groups of four rows, spread over the data; each row names two others of its group.
    groups = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    neighbours = [[]] * 12
    for group in groups:
        for place, row in enumerate(group):
            neighbours[row] = [group[place - 1], group[(place + 1) % 4]]
    for epoch in range(3):
        sampler = HardBatchSampler(neighbours, 4)
        sampler.epoch = epoch
        assert sorted(map(sorted, batches(sampler))) == groups


def test_mutual_neighbours_come_before_one_sided_ones():
    # Row 0 names 1 and 2, of which 2 names it back; 3 names 0.
    neighbours = [[1, 2], [4], [0], [0], [5], [4]]
    orders = {}
    for seed in range(40):
        rows = list(HardBatchSampler(neighbours, 6, seed))
        orders.setdefault(rows[0], rows)
    assert orders[0][:4] == [0, 2, 1, 3]  # mutual, named, naming
    assert orders[4][:2] == [4, 5]


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, n - 1), unique=True, max_size=4), min_size=n, max_size=n)
    ),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_each_row_comes_once(neighbours, batch_size, seed):
    sampler = HardBatchSampler(neighbours, batch_size, seed)
    assert sorted(sampler) == list(range(len(neighbours))) and len(sampler) == len(neighbours)
    assert list(sampler) == list(HardBatchSampler(neighbours, batch_size, seed))


def test_another_epoch_or_seed_is_another_order():
    neighbours = [[(row + 1) % 50, (row - 1) % 50] for row in range(50)]
    first, seeded, later = (HardBatchSampler(neighbours, 5, seed) for seed in (0, 1, 0))
    later.epoch = 1
    assert len({tuple(first), tuple(seeded), tuple(later)}) == 3


def test_a_batch_of_nothing():
    with pytest.raises(ValueError, match="batch_size=0"):
        HardBatchSampler([[]], 0)
