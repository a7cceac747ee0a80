"""Workers of a DataLoader that find no shared memory, or die."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments, ViTImageProcessor

from hf_distinct.data import workers
from hf_distinct.data.images import decode_image
from hf_distinct.data.workers import fit_trainer, fitting_workers, said_by_worker, share
from hf_distinct.runs.arguments import clear_errors

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="only Linux shows shared memory as a disk")


class Failing(Dataset):
    """One item, which `make` makes."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 1

    def __getitem__(self, row):
        return self.make()


def no_room(worker):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def loaded(make, init=None):
    return list(DataLoader(Failing(make), batch_size=None, num_workers=1, worker_init_fn=init))


def test_workers_are_as_many_as_shared_memory_has_room_for(caplog):
    batch = int(shutil.disk_usage("/dev/shm").free / 8.5)
    assert fitting_workers(3, batch) == 3 and not caplog.records  # 3 x 2 batches ahead and one in use: 7 of 8
    assert fitting_workers(4, batch) == 3
    (record,) = caplog.records
    for part in ("num_workers=4 would need", "(1 x (4 x 2 + 1) batches of", "num_workers=3 is used", "--shm-size"):
        assert part in record.getMessage()
    assert fitting_workers(3, batch, prefetch=4) == 1
    assert fitting_workers(1, 10 * batch) == 0
    assert fitting_workers(0, 10 * batch) == 0


def test_processes_of_a_machine_share_it(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert fitting_workers(3, int(shutil.disk_usage("/dev/shm").free / 8.5)) == 1


def test_where_there_is_no_such_place_nothing_is_lowered(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "none")
    assert fitting_workers(8, 2**60) == 8


def test_a_trainer_goes_on_without_workers(tmp_path, caplog):
    how = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True}
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, **how)
    fit_trainer(args, ViTImageProcessor(size={"height": 8, "width": 8}))
    assert args.dataloader_num_workers == 2
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
    args.per_device_train_batch_size = 2**40
    fit_trainer(args, ViTImageProcessor(size={"height": 8, "width": 8}))
    assert args.dataloader_num_workers == 0 and "dataloader_num_workers=2 would need" in caplog.text
    assert args.dataloader_prefetch_factor is None and not args.dataloader_persistent_workers


def test_a_worker_without_room_says_so():
    """Where it is left to the queue, a thread of the worker fails, and the batch never comes."""

    def make():
        share([torch.zeros(10_000), None])
        return 1

    with pytest.raises(ValueError, match="too little shared memory") as raised:
        loaded(make, no_room)
    said = said_by_worker(raised.value)
    assert said.startswith("A worker has too little shared memory (") and "Traceback" not in said
    assert "--shm-size" in said
    share([torch.zeros(10_000)])  # outside of a worker nothing is moved


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "Workers are killed if memory or shared memory is short."),
        (lambda: decode_image(None), "image cannot be decoded: ValueError: the row has no image (null)"),
        (lambda: Path("/nowhere/at/all").read_text(), "No such file or directory: '/nowhere/at/all'"),
    ],
    ids=["killed", "ours", "a file"],
)
def test_what_ends_a_worker_is_one_line(make, message):
    with pytest.raises(SystemExit) as ended, clear_errors():
        loaded(make)
    assert message in ended.value.code and "Traceback" not in ended.value.code and "\n" not in ended.value.code


@pytest.mark.parametrize("make", [lambda: int("a"), lambda: 1 / 0], ids=["ValueError", "ZeroDivisionError"])
def test_errors_of_others_in_a_worker_keep_their_traceback(make):
    with pytest.raises((ValueError, ZeroDivisionError), match="Original Traceback"), clear_errors():
        loaded(make)
