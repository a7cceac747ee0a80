"""A disk that is too small is found before the work."""

from __future__ import annotations

import errno
import shutil

import pytest
from safetensors import SafetensorError

from hf_distinct.files.disk_space import check_room, named_errors


def test_both_numbers_and_the_folder_are_named(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_room(tmp_path / "not" / "there" / "yet", free // 2, "The model")
    with pytest.raises(OSError, match=r"left: The model will need about .* GiB, but the disk has") as e:
        check_room(tmp_path / "out", 2 * free + 2**31, "The model")
    assert e.value.errno == errno.ENOSPC and e.value.filename == str(tmp_path / "out")


def test_a_training_asks_before_its_first_step(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=1)
    weights = sum(4 * each.numel() for each in trainer.model.parameters())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, weights // 2))
    with pytest.raises(OSError, match="captioner at the end"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), Exception("No space left on device (os error 28)"), SafetensorError("a")],
)
def test_a_disks_error_of_any_kind_names_the_folder(tmp_path, error):
    told = f"{tmp_path} could not be written: .*(free some space|Fix this)"
    with pytest.raises(OSError, match=told), named_errors(tmp_path):
        raise error


def test_an_error_that_is_no_disks_passes(tmp_path):
    with pytest.raises(KeyError), named_errors(tmp_path):
        raise KeyError("a")
