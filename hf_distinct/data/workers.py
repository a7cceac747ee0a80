"""Worker processes of DataLoaders: check shared memory, and explain why one died."""

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

SHARED_MEMORY = Path("/dev/shm")  # only Linux has it as a file system, whose size may be small
TRIAL = Image.new("RGB", (64, 48))  # an image to measure the size of preprocessed images
PREFETCH = 2  # a DataLoader's default number of batches that a worker prepares in advance
_LINES = re.MULTILINE | re.DOTALL
ADVICE = "In Docker, set a larger size with `docker run --shm-size=8g`, or use fewer workers or a smaller batch size"


def fitting_workers(wanted: int, batch_bytes: int, prefetch: int | None = None, setting: str = "num_workers") -> int:
    """Return how many DataLoader workers fit into shared memory, with a warning if it is fewer than requested.

    Workers pass batches through shared memory, which is 64 MB in Docker. A worker without memory dies, or hangs
    silently.

    Args:
        wanted: number of workers of this process; the others on this machine (``LOCAL_WORLD_SIZE``) use the same.
        batch_bytes: size of the tensors of a batch.
        prefetch: batches that each worker prepares in advance; by default 2, as in a DataLoader.
        setting: name of the setting in the warning.
    """
    if wanted < 1 or not SHARED_MEMORY.is_dir():
        return wanted
    free = shutil.disk_usage(SHARED_MEMORY).free
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    ahead = prefetch or PREFETCH
    # One more batch is in use.
    fitting = int((free / processes / max(batch_bytes, 1) - 1) // ahead)
    if fitting >= wanted:
        return wanted
    fitting, needed = max(fitting, 0), processes * (wanted * ahead + 1) * batch_bytes
    logger.warning(
        f"{setting}={wanted} would need about {needed / 2**20:.1f} MiB of shared memory ({processes} x "
        f"({wanted} x {ahead} + 1) batches of {batch_bytes / 2**20:.1f} MiB), but {SHARED_MEMORY} has only "
        f"{free / 2**20:.1f} MiB free, so {setting}={fitting} is used. {ADVICE}."
    )
    return fitting


def share(tensors: Iterable[Tensor | None]) -> None:
    """Move tensors of a batch into shared memory, if this is a DataLoader worker; it would be done later anyway.

    Later means in a thread whose errors are lost, so that the main process would wait forever.

    Raises:
        ValueError: shared memory is too small.
    """
    if get_worker_info() is None:
        return
    for tensor in tensors:
        try:
            if tensor is not None:
                tensor.share_memory_()
        except RuntimeError as error:
            raise ValueError(f"A worker has too little shared memory ({error}). {ADVICE}.") from error


def said_by_worker(error: BaseException) -> str | None:
    """Return the message of an error that a DataLoader worker raised or died of, without the worker's traceback.

    Returns:
        None for other errors, and for worker errors that are neither ``OSError`` nor a ``ValueError`` of this package.
    """
    text = str(error)
    if isinstance(error, RuntimeError) and (died := re.match(r"DataLoader worker \(pid.*", text)):
        return f"{died[0].rstrip('. ')}. Workers are killed if memory or shared memory is short. {ADVICE}."
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return None
    innermost = re.fullmatch(r'"(.+?)", line \d.*?^\w[\w.]*: (.*)', text.rpartition("\n  File ")[2], _LINES)
    if innermost is None or not isinstance(error, (ValueError, OSError)):
        return None
    ours = Path(innermost[1]).resolve().is_relative_to(Path(__file__).resolve().parents[1])
    return innermost[2].strip() if ours or isinstance(error, OSError) else None


def fit_trainer(args: TrainingArguments, image_processor: BaseImageProcessor) -> None:
    """Lower ``dataloader_num_workers`` to the number that fits into shared memory, with a warning."""
    if not args.dataloader_num_workers:
        return
    # The rest of a batch is small compared with its pixels.
    size = args.train_batch_size * to_pixel_values([TRIAL], image_processor).nbytes
    args.dataloader_num_workers = fitting_workers(
        args.dataloader_num_workers, size, args.dataloader_prefetch_factor, "dataloader_num_workers"
    )
    if not args.dataloader_num_workers:  # these settings require workers
        args.dataloader_prefetch_factor, args.dataloader_persistent_workers = None, False
