"""What spans processes: rows of all of them as one batch, models that stay whole; with one process nothing moves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.text.problems import one_line


def check_number_of_processes(found: int) -> None:
    """Raise ValueError if this run has another number of processes than its launcher was asked for.

    ``accelerate launch --cpu --num_processes 2`` starts one process without a word, unless it is given MPI: it tells
    the process where to meet the others, but not how many they are.
    """
    asked = os.environ.get("WORLD_SIZE")
    if asked is not None and int(asked) != found:
        raise ValueError(
            f"The launcher was asked for {asked} processes, and this one finds {found}: they would train without each "
            "other. Start them with `hf-distinct train --accelerate_config ddp`, or unset WORLD_SIZE."
        )
    if asked is None and found == 1 and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
        raise ValueError(
            "accelerate launch was asked for several processes and started one: its CPU mode (--cpu, MULTI_CPU) needs "
            "MPI. Use `hf-distinct train --accelerate_config ddp`, which runs on CPUs too, or unset MASTER_ADDR to "
            "train with one."
        )


def said_of_lost_process(error: BaseException) -> str | None:
    """What to say of an error by which a process learns that another has ended or never came; None for others."""
    text = one_line(error)
    lost = isinstance(error, RuntimeError) and ("gloo/transport" in text or "NCCL" in text)
    if not (lost or isinstance(error, torch.distributed.DistError)):
        return None
    return (
        "Another process of this run has ended or cannot be reached; what it said last tells why. Start all processes "
        f"again, a training with --resume_from_checkpoint true, and the run goes on where it was. ({text})"
    )


def wait_for_first_process(done: Callable[[], object], seconds: float = 0.2) -> None:
    """Wait until process 0 has done something that a file shows; it may take hours, so no collective waits for it.

    Args:
        done: whether it is done.
        seconds: between two looks.

    Raises:
        torch.distributed.DistError: process 0, which holds the store of the process group, has ended before.
    """
    store = torch.distributed.distributed_c10d._get_default_store()
    while not done():
        time.sleep(seconds)
        try:
            store.check([""])
        except RuntimeError:
            if not done():
                raise


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


def share(count: int | Tensor, accelerator: Accelerator) -> Tensor:
    """What a mean over this process's ``count`` things is worth in the mean over those of all P processes.

    ``P * count / (sum of all counts)``: gradients and losses are averaged over processes as if each had the same
    number of things, and multiplied by this, their average is the mean over all things. 1 where all have as many.

    Args:
        count: how many things this process's mean is over.
        accelerator: knows the other processes.

    Returns:
        A scalar, float32; 0 if nobody has anything.
    """
    mine = torch.as_tensor(count, device=accelerator.device).float()
    if accelerator.num_processes == 1:
        return torch.ones_like(mine)
    return mine * accelerator.num_processes / accelerator.reduce(mine.clone(), reduction="sum").clamp(min=1)


def own_rows(batch: dict[str, Any], size: int, accelerator: Accelerator) -> dict[str, Any]:
    """The batch that was just fetched, without the rows that it is filled up with.

    Accelerate fills the last batch of an epoch with rows from the epoch's beginning, behind the others in the order of
    processes, until every process has as many. A process that is left without any row of its own keeps the pixels of
    one, for it has to take part in every exchange of the step, and the model in its place needs something to run on: a
    caption without a token, which weighs nothing in any loss.

    Args:
        batch: what [`hf_distinct.data.CaptionCollator`] makes.
        size: how many rows each process asks for.
        accelerator: knows the other processes, and which batch is the last.
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
