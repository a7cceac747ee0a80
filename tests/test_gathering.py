"""Rows of all processes as one batch: alone here, over two real processes below."""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator

from hf_distinct.gathering import gather_rows, own_part

# What each of two processes holds: unequal numbers of rows, and none at all.
ROWS = ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0]])
IDS = ([-(2**62), 2**62 + 1], [])


def test_alone_nothing_moves():
    accelerator, rows = Accelerator(cpu=True), torch.arange(6.0).view(3, 2)
    assert gather_rows(rows, accelerator) is rows
    assert own_part(rows, 3, accelerator) is rows


def one_process(rank: int, folder: str) -> None:
    """Gather, take the own part back, and write both down."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2 and accelerator.process_index == rank
    rows = torch.tensor(ROWS[rank], requires_grad=True)
    ids = torch.tensor(IDS[rank], dtype=torch.int64)
    gathered, gathered_ids = gather_rows(rows.detach(), accelerator), gather_rows(ids, accelerator)
    mask = gather_rows(rows.detach()[:, 0] > 2, accelerator)
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


if __name__ == "__main__":
    one_process(int(sys.argv[1]), sys.argv[2])
