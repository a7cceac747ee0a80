"""What one process of a node does for all processes of this node: read data, and write files on its disk."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from hf_distinct.distributed.gathering import wait_for_first_process
from hf_distinct.files.parts import Parts, this_process

AT_ONCE = 8  # parts
PATIENCE = 60.0  # seconds
T = TypeVar("T")
_CALLS = itertools.count()


def local_rank() -> int:
    """Return the rank of this process among those of its node, as the launcher tells it."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def once_per_node(compute: Callable[[], T]) -> T:
    """Compute something in the first process of each node, and return it in all processes of the node.

    The result is sent through a file. Datasets in Arrow files are sent as the names of these files, and memory-mapped
    by all. All processes have to call this equally often. Outside of a process group, each process computes.

    Args:
        compute: returns the result, which can be pickled.

    Raises:
        Exception: what `compute` raised in the first process.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if processes == 1 or this_process()[1] == 1:
        return compute()
    key = f"hf_distinct/{os.environ.get('GROUP_RANK', '0')}/{next(_CALLS)}"
    store = _store()
    outcome: dict[str, Any]
    if local_rank() == 0:
        try:
            outcome = {"result": compute()}
        except Exception as error:
            outcome = {"error": error}
        handle, path = tempfile.mkstemp(prefix="hf_distinct-")
        with open(handle, "wb") as file:
            pickle.dump(outcome, file)
        store.set(key, path)
        end = time.monotonic() + PATIENCE
        while "error" in outcome and time.monotonic() < end and store.add(f"{key}/read", 0) < processes - 1:
            time.sleep(0.1)  # process 0 must not end before the others know why
    else:
        wait_for_first_process(lambda: store.check([key]))
        path = store.get(key).decode()
        with open(path, "rb") as file:
            outcome = pickle.load(file)  # noqa: S301  # written above, by a process of this run
        if store.add(f"{key}/read", 1) == processes - 1:
            os.remove(path)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def writes_for_others(folder: Path) -> bool:
    """Return whether this process writes what all processes that see a folder wait for.

    This is process 0. If the folder is on a disk of its own on each node, it is also the first process of each other
    node. All processes have to call this.

    Args:
        folder: the folder; created if needed.
    """
    rank, processes = this_process()
    if processes == int(os.environ.get("LOCAL_WORLD_SIZE") or processes):
        return rank == 0
    key = f"hf_distinct/disk of {folder.name}"
    if rank == 0:
        mark = folder / f".process-0-{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):  # it cannot be written, so that all of it has to be there
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
            atexit.register(mark.unlink, missing_ok=True)
        _store().set(key, mark.name)
        return True
    if local_rank() != 0:
        return False
    wait_for_first_process(lambda: _store().check([key]))
    return not (folder / _store().get(key).decode()).is_file()


def parts_to_compute(parts: Parts) -> list[int]:
    """Return which parts this process should compute next, of those that are missing.

    A few of its own share, of which rank r of P has every P-th, and then one by one those of the others: nobody waits
    for a slow, dead or late process. None, if all that are missing are being computed. Without other processes: all.
    """
    rank, processes = this_process()
    missing = parts.missing()
    if processes == 1:
        return missing
    claimed = parts.claimed_by_others()
    free = [number for number in missing if number not in claimed]
    return [number for number in free if number % processes == rank][:AT_ONCE] or free[-1 - local_rank() :][:1]


def wait_for_parts(parts: Parts, done: Callable[[], object]) -> None:
    """Wait until something is done, or until `parts_to_compute` returns a part."""
    wait_for_first_process(lambda: done() or parts_to_compute(parts))


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()
