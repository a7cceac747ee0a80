"""Rows of all processes as one batch: alone here, over two real processes below."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate import Accelerator

from hf_distinct.distributed.gathering import check_number_of_processes, gather_rows, own_part, share

# What each of two processes holds: unequal numbers of rows, and none at all.
ROWS = ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0]])
IDS = ([-(2**62), 2**62 + 1], [])


def test_alone_nothing_moves():
    accelerator, rows = Accelerator(cpu=True), torch.arange(6.0).view(3, 2)
    assert gather_rows(rows, accelerator) is rows
    assert own_part(rows, 3, accelerator) is rows
    assert share(3, accelerator) == 1 and share(0, accelerator) == 1


def one_process(rank: int, folder: str) -> None:
    """Gather, take the own part back, and write both down."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2 and accelerator.process_index == rank
    rows = torch.tensor(ROWS[rank], requires_grad=True)
    ids = torch.tensor(IDS[rank], dtype=torch.int64)
    gathered, gathered_ids = gather_rows(rows.detach(), accelerator), gather_rows(ids, accelerator)
    mask = gather_rows(rows.detach()[:, 0] > 2, accelerator)
    # Three rows and one: means over them count 2 * 3 / 4 and 2 * 1 / 4 in the mean over two processes; then 2 and 0.
    assert float(share(len(rows), accelerator)) == (1.5, 0.5)[rank]
    assert float(share(torch.tensor(len(ids)), accelerator)) == (2.0, 0.0)[rank]
    assert float(share(0, accelerator)) == 0.0
    own, own_ids = own_part(gathered, len(rows), accelerator), own_part(gathered_ids, len(ids), accelerator)
    assert own.tolist() == ROWS[rank] and own_ids.tolist() == IDS[rank]
    torch.save({"rows": gathered, "ids": gathered_ids, "mask": mask}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_see_all_rows_in_the_order_of_processes(tmp_path, run_processes):
    run_processes(__file__, [tmp_path], [tmp_path])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["rows"].tolist() == [*ROWS[0], *ROWS[1]]
        assert found["ids"].tolist() == IDS[0] and found["ids"].dtype == torch.int64
        assert found["mask"].tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("environment", "found", "message"),
    [
        ({}, 1, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, 1, None),
        ({"MASTER_ADDR": "10.0.0.1"}, 1, None),  # some clusters set it everywhere
        ({"MASTER_ADDR": "10.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, 4, None),  # under MPI
        ({"MASTER_ADDR": "10.0.0.1", "ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2"}, 2, None),
        ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, 1, "asked for several processes"),
        ({"WORLD_SIZE": "2"}, 1, "asked for 2 processes, but this process finds 1"),
    ],
)
def test_another_number_of_processes_than_was_asked_for_is_an_error(monkeypatch, environment, found, message):
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if message is None:
        check_number_of_processes(found)
    else:
        with pytest.raises(ValueError, match=message):
            check_number_of_processes(found)


if __name__ == "__main__":
    one_process(int(sys.argv[1]), sys.argv[2])
