"""Which checkpoints are whole, and which one a run is taken up from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_distinct.files import checkpoints


def write(folder: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "global_step").mkdir(parents=True)
    for name in ("model.safetensors", "rl_state.pt", "trainer_state.json", "global_step/shard.pt"):
        (checkpoint / name).write_text(f"{name} of step {step}")
    if sealed:
        checkpoints.seal(checkpoint, processes=2)
    return checkpoint


def test_a_sealed_checkpoint_is_whole_and_knows_who_wrote_it(tmp_path):
    checkpoint = write(tmp_path, 3)
    assert checkpoints.damage(checkpoint) is None
    assert checkpoints.processes_of(checkpoint) == 2
    assert not list(checkpoint.glob("*.tmp"))


@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (lambda folder: (folder / "complete.json").unlink(), "never finished"),
        (lambda folder: (folder / "complete.json").write_text('{"processes": 2, "fi'), "never finished"),
        (lambda folder: (folder / "rl_state.pt").unlink(), "rl_state.pt is missing"),
        (lambda folder: (folder / "global_step" / "shard.pt").write_text("of"), r"shard.pt has 2 bytes instead of 31"),
    ],
)
def test_a_torn_one_is_recognised_and_the_one_before_it_is_taken(tmp_path, caplog, tear, reason):
    whole, torn = write(tmp_path, 9), write(tmp_path, 10)  # by number, not by name
    tear(torn)
    for setting in ("true", "True", True, str(torn), f"{torn}/"):
        caplog.clear()
        assert checkpoints.choose(setting, tmp_path) == str(whole)
        assert reason in caplog.text and "checkpoint-10" in caplog.text


def test_a_path_is_taken_as_it_is(tmp_path):
    first, _ = write(tmp_path, 1), write(tmp_path, 2)
    assert checkpoints.choose(str(first), tmp_path / "elsewhere") == str(first)


@pytest.mark.parametrize("setting", [None, False, "false", ""])
def test_nothing_is_taken_unasked(tmp_path, setting):
    write(tmp_path, 1)
    assert checkpoints.choose(setting, tmp_path) is None


def test_true_begins_anew_where_nothing_is_whole(tmp_path, caplog):
    write(tmp_path, 1, sealed=False)
    assert checkpoints.choose("true", tmp_path) is None
    assert "has no complete checkpoint" in caplog.text


def test_a_named_one_that_cannot_be_taken_is_an_error(tmp_path):
    torn, _ = write(tmp_path, 1, sealed=False), write(tmp_path, 2)
    with pytest.raises(ValueError, match=r"checkpoint-1 is incomplete: .* no complete checkpoint before"):
        checkpoints.choose(str(torn), tmp_path)
    with pytest.raises(ValueError, match="checkpoint-7: there is no such folder"):
        checkpoints.choose(str(tmp_path / "checkpoint-7"), tmp_path)


@pytest.mark.parametrize(
    ("write_it", "reason", "advice"),
    [
        (lambda: Path("/dev/full").write_text("x"), "No space left on device", "disk is full: free some space"),
        (lambda: torch.save(torch.zeros(10**5), "/dev/full"), "enforce fail", "may be full: free some space"),
        (lambda: Path("/nowhere/x").write_text("x"), "No such file or directory: '/nowhere/x'", "Fix this, then"),
        (lambda: save_file({"x": torch.zeros(1)}, "/nowhere/x"), "No such file or directory", "Fix this, then con"),
    ],
    ids=["full", "torch", "folder", "safetensors"],
)
def test_what_cannot_be_written_is_one_kind_of_error(tmp_path, write_it, reason, advice):
    write(tmp_path, 4)
    message = r"^out could .*--resume_from_checkpoint true; the newest complete checkpoint is .*checkpoint-4"
    with pytest.raises(OSError, match=message) as caught, checkpoints.written_to("out", tmp_path):
        write_it()
    assert reason in str(caught.value) and advice in str(caught.value)


def test_an_error_that_is_no_disks_passes_as_it_is(tmp_path, caplog):
    with pytest.raises(ZeroDivisionError), checkpoints.written_to("out", tmp_path):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError: division by zero; there is no complete checkpoint yet" in caplog.text


def test_the_oldest_are_removed_but_never_the_newest_nor_the_best(tmp_path):
    written = [write(tmp_path, step) for step in (900, 1, 2, 3)]  # the first is of an earlier, longer run
    for age, folder in enumerate(reversed(written)):
        os.utime(folder, (1e9 - age, 1e9 - age))
    earlier, best, _, newest = written
    checkpoints.remove_oldest(newest, None, str(best))
    assert all(folder.is_dir() for folder in written)
    checkpoints.remove_oldest(newest, 3, str(best))
    assert [folder.is_dir() for folder in written] == [False, True, True, True] and not earlier.exists()
    checkpoints.remove_oldest(newest, 1, str(best))
    assert [folder.is_dir() for folder in written] == [False, True, False, True]


@pytest.mark.parametrize("name", ["model.safetensors", "rl_state.pt", "trainer_state.json", "global_step/shard.pt"])
def test_bytes_that_changed_are_noticed_in_every_file(tmp_path, caplog, name):
    before, damaged = write(tmp_path, 1), write(tmp_path, 2)
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    assert checkpoints.choose("true", tmp_path) == str(before)
    assert f"checkpoint-2 is incomplete and is skipped: {name} has changed since it was written" in caplog.text


def test_a_seal_that_holds_sizes_alone_still_counts(tmp_path):
    folder = write(tmp_path, 1)
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    (folder / checkpoints.SEAL).write_text(json.dumps({"processes": 1, "files": sizes}))
    assert checkpoints.damage(folder) is None


def test_folders_of_the_user_are_never_removed(tmp_path):
    old, newest = write(tmp_path, 1), write(tmp_path, 2)
    theirs = [tmp_path / "checkpoint-notes", tmp_path / "checkpoint-best-so-far", tmp_path / "checkpoint-3.bak"]
    for folder in theirs:
        folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-0").symlink_to("elsewhere")
    checkpoints.remove_oldest(newest, 1, None)
    assert not old.exists() and newest.is_dir()
    assert all(folder.is_dir() for folder in [*theirs, tmp_path / "checkpoint-0"])


@pytest.mark.parametrize("spelled", ["relative", "symlink", "slash", "dots"])
def test_the_best_is_kept_however_it_is_spelled(tmp_path, monkeypatch, spelled):
    for step in (1, 2, 3):
        write(tmp_path / "run", step)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    best = {
        "relative": "run/checkpoint-1", "symlink": f"{tmp_path}/link/checkpoint-1", "slash": "run/checkpoint-1/",
        "dots": "run/../run/checkpoint-1",
    }[spelled]  # fmt: skip
    checkpoints.remove_oldest(tmp_path / "run" / "checkpoint-3", 2, best)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_a_checkpoint_is_found_where_its_run_has_moved(tmp_path):
    moved = write(tmp_path / "moved", 1)
    assert checkpoints.located("old/run/checkpoint-1", tmp_path / "moved") == str(moved)
    assert checkpoints.located(str(moved), tmp_path) == str(moved)
    assert checkpoints.located("old/run/checkpoint-2", tmp_path / "moved") == "old/run/checkpoint-2"
    assert checkpoints.located(None, tmp_path) is None


def test_any_byte_of_the_seal_itself_is_noticed(tmp_path):
    folder = write(tmp_path, 3)
    whole = (folder / "complete.json").read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (folder / "complete.json").write_bytes(flipped)
        if json.loads(whole) != as_json(flipped):  # a space may become another sign that JSON passes over
            assert checkpoints.damage(folder), bytes(flipped[max(place - 20, 0) : place + 20])


def as_json(content):
    try:
        return json.loads(content)
    except ValueError:
        return None
