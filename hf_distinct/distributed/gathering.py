"""Gather rows from all processes into one batch, and keep models whole; with one process nothing is copied."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.accelerator import Accelerator
from accelerate.utils import gather
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.text.problems import one_line


def check_number_of_processes(found: int) -> None:
    """Raise ValueError if this run has another number of processes than was requested from the launcher.

    ``accelerate launch --cpu --num_processes 2`` silently starts one process unless it has MPI. It sets the
    rendezvous address, but not the number of processes.
    """
    asked = os.environ.get("WORLD_SIZE")
    if asked is not None and int(asked) != found:
        raise ValueError(
            f"The launcher was asked for {asked} processes, but this process finds {found}, so they would train "
            "separately. Start them with `hf-distinct train --accelerate_config ddp`, or unset WORLD_SIZE."
        )
    if asked is None and found == 1 and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise ValueError(
            "accelerate launch was asked for several processes but started one: its CPU mode (--cpu, MULTI_CPU) needs "
            "MPI. Use `hf-distinct train --accelerate_config ddp`, which works on CPUs too, or unset MASTER_ADDR to "
            "train with one process."
        )


def said_of_lost_process(error: BaseException) -> str | None:
    """Return a message for an error that tells a process that another has ended or never came; None for others."""
    text = one_line(error)
    lost = isinstance(error, RuntimeError) and ("gloo/transport" in text or "NCCL" in text)
    if not (lost or isinstance(error, torch.distributed.DistError)):
        return None
    return (
        "Another process of this run has ended or cannot be reached; its last message tells why. Start all processes "
        f"again; a training continues from its newest checkpoint with --resume_from_checkpoint true. ({text})"
    )


def wait_for_first_process(done: Callable[[], object], seconds: float = 0.2) -> None:
    """Wait until process 0 has written a file. This may take hours, longer than a collective may wait.

    Args:
        done: returns whether the file is there.
        seconds: time between two checks.

    Raises:
        torch.distributed.DistError: process 0, which hosts the store of the process group, has ended before.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    while not done():
        time.sleep(seconds)
        try:
            store.check([""])
        except RuntimeError:
            if not done():
                raise


def _counts(count: int, accelerator: Accelerator | PartialState) -> list[int]:
    return gather(torch.tensor([count], device=accelerator.device)).tolist()


def gather_rows(rows: Tensor, accelerator: Accelerator | PartialState) -> Tensor:
    """Gather rows ``(n_p, ...)`` of every process p in rank order: ``(sum of n_p, ...)``, without gradient."""
    if accelerator.num_processes == 1:
        return rows
    counts = _counts(len(rows), accelerator)
    longest = max(counts)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = gather(padded.contiguous())
    return torch.cat([gathered[i * longest : i * longest + count] for i, count in enumerate(counts)])


def own_part(rows: Tensor, count: int, accelerator: Accelerator) -> Tensor:
    """Return the ``count`` gathered rows that came from this process."""
    if accelerator.num_processes == 1:
        return rows
    counts = _counts(count, accelerator)
    begin = sum(counts[: accelerator.process_index])
    return rows[begin : begin + count]


def share(count: int | Tensor, accelerator: Accelerator) -> Tensor:
    """Return the weight of this process's mean over ``count`` items in the mean over all P processes.

    It is ``P * count / (sum of all counts)``. Gradients and losses are averaged over processes as if each had the same
    number of items. If each is multiplied by its weight, that average is the mean over all items. The weight is 1 if
    all processes have the same count.

    Args:
        count: number of items in this process's mean.
        accelerator: gives access to the other processes.

    Returns:
        A scalar, float32; 0 if no process has any items.
    """
    mine = torch.as_tensor(count, device=accelerator.device).float()
    if accelerator.num_processes == 1:
        return torch.ones_like(mine)
    return mine * accelerator.num_processes / accelerator.reduce(mine.clone(), reduction="sum").clamp(min=1)


def own_rows(batch: dict[str, Any], size: int, accelerator: Accelerator) -> dict[str, Any]:
    """Remove the rows that fill up the batch that was just fetched.

    Accelerate fills up the last batch of an epoch with rows from the epoch's beginning, after the other rows in the
    order of ranks, until all processes have the same number. A process with no rows of its own keeps the pixels of one
    as a placeholder, because it has to take part in every collective operation of the step and the model needs an
    input: its caption has no tokens and no weight in any loss.

    Args:
        batch: the output of [`hf_distinct.data.CaptionCollator`].
        size: batch size per process.
        accelerator: gives the rank, and whether this is the last batch.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return batch
    kept = min(max(state.remainder - accelerator.process_index * size, 0), size)
    own = _first_rows(batch, kept)
    if not kept:
        own["pixel_values"] = batch["pixel_values"][:1]
        own["labels"] = torch.full_like(batch["labels"][:1], IGNORED_LABEL)
    return own


def _first_rows(batch: dict[str, Any], count: int) -> dict[str, Any]:
    return {name: _first_rows(v, count) if isinstance(v, dict) else v[:count] for name, v in batch.items()}


@contextmanager
def unsplit(args: TrainingArguments) -> Iterator[None]:
    """Load models inside this context without splitting them.

    Once there are TrainingArguments with ZeRO-3, transformers splits every model that it creates: the trained one, but
    also the text tower of a frozen scorer, which no engine would ever gather again.
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
