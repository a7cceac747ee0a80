"""A disk that runs full while a checkpoint is written: an error that names it, and nothing lost that was saved.

The disk is a small tmpfs in a mount namespace of our own, which root and, on most machines, everybody may make. Where
that is forbidden, one of the checkpoint's files leads to /dev/full, which answers every write as a full disk does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults.campaign import NAMESPACE, may_mount

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_run_stops_says_why_and_goes_on_when_there_is_room(tiny_models, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = may_mount(disk)
    command = [*(NAMESPACE if mounted else []), sys.executable, str(Path(__file__).parent / "full_disk.py")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    done = subprocess.run(
        [*command, str(tiny_models), str(tmp_path), "tmpfs" if mounted else "/dev/full"],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "checkpoint-2 could not be written: " in found["error"]
    assert "newest complete checkpoint is" in found["error"] and "resume_from_checkpoint true" in found["error"]
    assert found["left"] == ["checkpoint-1"]  # nothing torn takes up the room that is needed
    assert found["resumed_from"] == 1
    assert found["losses"] == found["undisturbed"][1:] and len(found["undisturbed"]) == 4
    assert found["same_weights"]
