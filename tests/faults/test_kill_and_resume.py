"""A run that is killed, or asked to stop, at random moments ends as if it had never been; see kill_and_resume.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_taken_up_and_the_same_to_the_bit(processes):
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    script = [sys.executable, str(Path(__file__).parent / "kill_and_resume.py"), "--processes", str(processes)]
    how = ["--kills", "5", "--signals", "SIGKILL", "SIGTERM", "SIGKILL", "SIGINT", "SIGKILL"]
    done = subprocess.run([*script, *how], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["kills"] == 5
    assert report["same"] and all(report["same"])
    # Killed: -9, and the others fail. Asked to stop: all of them, in agreement, whoever was asked.
    assert -9 in report["statuses"]["SIGKILL"] and 0 not in report["statuses"]["SIGKILL"]
    assert report["statuses"]["SIGTERM"] == [143] and report["statuses"]["SIGINT"] == [130]
