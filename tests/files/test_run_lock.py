"""Two runs never share a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hf_distinct.files import run_lock

HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
input()
"""  # as `run_lock.claim` of another process, without the seconds that its imports take


@pytest.fixture
def held(tmp_path):
    """A folder that another process has claimed, and that process."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield tmp_path / "run", process
    process.kill()
    process.wait()


def test_a_folder_of_another_run_is_refused_until_that_run_dies(held, make_trainer, tmp_path):
    folder, other = held
    (tmp_path / "link").symlink_to(folder)
    for name in (folder, f"{folder}/", tmp_path / "link"):
        with pytest.raises(ValueError, match="another run is using this folder"):
            run_lock.claim(name)
    trainer = make_trainer(folder)
    with pytest.raises(ValueError, match="another run is using this folder"):
        trainer.train()
    assert list(folder.iterdir()) == []
    other.kill()
    other.wait()
    trainer.train()


def test_a_process_may_claim_twice_and_frees_a_folder_at_the_last_release(tmp_path):
    run_lock.claim(tmp_path)
    run_lock.claim(f"{tmp_path}/.")
    run_lock.release(tmp_path)
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    assert "BlockingIOError" in subprocess.run(command, capture_output=True, text=True, input="\n").stderr
    run_lock.release(tmp_path)
    assert subprocess.run(command, capture_output=True, text=True, input="\n").stdout == "held\n"


def test_a_release_without_a_claim_does_nothing(tmp_path):
    run_lock.release(tmp_path)
    assert not list(tmp_path.iterdir())
