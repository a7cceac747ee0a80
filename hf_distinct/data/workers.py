"""Processes that prepare batches ahead: whether shared memory has room for them, and what to say when one dies."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import BaseImageProcessor, TrainingArguments
from transformers.utils import logging

from hf_distinct.data.images import to_pixel_values

logger = logging.get_logger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # Linux alone has it as a file system, whose size may be small
TRIAL = Image.new("RGB", (64, 48))  # a picture, to see how large it is when it is prepared
PREFETCH = 2  # batches that a worker of a DataLoader prepares ahead, unless it is told otherwise
_LINES = re.MULTILINE | re.DOTALL
ADVICE = "In Docker, give more with `docker run --shm-size=8g`, or lower the number of workers or the batch size"


def fitting_workers(wanted: int, batch_bytes: int, prefetch: int | None = None, setting: str = "num_workers") -> int:
    """Return how many workers of a DataLoader shared memory has room for, with a warning if it is fewer than wanted.

    Workers hand batches over in shared memory, of which Docker gives 64 MB. One that finds none left dies, or stays
    silent for ever.

    Args:
        wanted: number of workers of this process; others on this machine (``LOCAL_WORLD_SIZE``) want as many.
        batch_bytes: size of the tensors of a batch.
        prefetch: batches that each worker prepares ahead; by default 2, as a DataLoader has it.
        setting: what the number is called in the warning.
    """
    if wanted < 1 or not SHARED_MEMORY.is_dir():
        return wanted
    free = shutil.disk_usage(SHARED_MEMORY).free
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    ahead = prefetch or PREFETCH
    # One batch more is in use.
    fitting = int((free / processes / max(batch_bytes, 1) - 1) // ahead)
    if fitting >= wanted:
        return wanted
    fitting, needed = max(fitting, 0), processes * (wanted * ahead + 1) * batch_bytes
    logger.warning(
        f"{setting}={wanted} would need about {needed / 2**20:.1f} MiB of shared memory ({processes} x "
        f"({wanted} x {ahead} + 1) batches of {batch_bytes / 2**20:.1f} MiB), and {SHARED_MEMORY} has "
        f"{free / 2**20:.1f} MiB free: {setting}={fitting} is used. {ADVICE}."
    )
    return fitting


def share(tensors: Iterable[Tensor | None]) -> None:
    """Move tensors of a batch into shared memory, if this is a worker of a DataLoader; it would be done later anyway.

    Later is in a thread whose errors nobody hears of: the process that waits for the batch would wait for ever.

    Raises:
        ValueError: shared memory has no room for them.
    """
    if get_worker_info() is None:
        return
    for tensor in tensors:
        try:
            if tensor is not None:
                tensor.share_memory_()
        except RuntimeError as error:
            raise ValueError(f"A worker found no room in shared memory ({error}). {ADVICE}.") from error


def said_by_worker(error: BaseException) -> str | None:
    """The message of an error that a worker of a DataLoader raised or died of, without the worker's traceback.

    Returns:
        None for other errors, and for those of a worker that are no ``OSError`` and no ``ValueError`` of this package.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and (died := re.match(r"DataLoader worker \(pid.*", text)):
        return f"{died[0].rstrip('. ')}. Workers are killed where memory or shared memory is short. {ADVICE}."
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return None
    innermost = re.fullmatch(r'"(.+?)", line \d.*?^\w[\w.]*: (.*)', text.rpartition("\n  File ")[2], _LINES)
    if innermost is None or not isinstance(error, (ValueError, OSError)):
        return None
    ours = Path(innermost[1]).resolve().is_relative_to(Path(__file__).resolve().parents[1])
    return innermost[2].strip() if ours or isinstance(error, OSError) else None


def fit_trainer(args: TrainingArguments, image_processor: BaseImageProcessor) -> None:
    """Lower ``dataloader_num_workers`` to what shared memory has room for, with a warning."""
    if not args.dataloader_num_workers:
        return
    # The rest of a batch is small beside its pixels.
    size = args.train_batch_size * to_pixel_values([TRIAL], image_processor).nbytes
    args.dataloader_num_workers = fitting_workers(
        args.dataloader_num_workers, size, args.dataloader_prefetch_factor, "dataloader_num_workers"
    )
    if not args.dataloader_num_workers:  # which these are only for
        args.dataloader_prefetch_factor, args.dataloader_persistent_workers = None, False
