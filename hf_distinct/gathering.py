"""Rows of all processes as one batch; one process is the special case in which nothing moves."""

from __future__ import annotations

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor


def _counts(count: int, accelerator: Accelerator) -> list[int]:
    return accelerator.gather(torch.tensor([count], device=accelerator.device)).tolist()


def gather_rows(rows: Tensor, accelerator: Accelerator) -> Tensor:
    """Rows ``(n_p, ...)`` of every process p, in the order of processes: ``(sum of n_p, ...)``, without gradient."""
    if accelerator.num_processes == 1:
        return rows
    counts = _counts(len(rows), accelerator)
    longest = max(counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = accelerator.gather(padded.contiguous())
    return torch.cat([gathered[i * longest : i * longest + count] for i, count in enumerate(counts)])


def own_part(rows: Tensor, count: int, accelerator: Accelerator) -> Tensor:
    """The ``count`` rows of gathered ones that came from this process."""
    if accelerator.num_processes == 1:
        return rows
    counts = _counts(count, accelerator)
    begin = sum(counts[: accelerator.process_index])
    return rows[begin : begin + count]
