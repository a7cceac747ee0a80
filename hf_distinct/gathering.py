"""What spans processes: rows of all of them as one batch, models that stay whole; with one process nothing moves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config


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


@contextmanager
def unsplit(args: TrainingArguments) -> Iterator[None]:
    """Models that are loaded inside stay whole.

    Under ZeRO-3 transformers splits every model that it makes once there are TrainingArguments: the one to be trained,
    and just as well the text tower of a frozen scorer, which no engine will ever put together again.
    """
    plugin = args.deepspeed_plugin
    if plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        plugin.set_deepspeed_weakref()
