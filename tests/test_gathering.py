"""Rows of all processes as one batch: alone here, over two real processes below."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_two_processes_see_all_rows_in_the_order_of_processes(tmp_path, free_port):
    root = str(Path(__file__).parents[1])
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": free_port}
        environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        environment |= {name: str(value) for name, value in place.items()}
        command = [sys.executable, __file__, str(rank), str(tmp_path)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["rows"].tolist() == [*ROWS[0], *ROWS[1]]
        assert found["ids"].tolist() == IDS[0] and found["ids"].dtype == torch.int64
        assert found["mask"].tolist() == [False, True, True, True]


if __name__ == "__main__":
    one_process(int(sys.argv[1]), sys.argv[2])
