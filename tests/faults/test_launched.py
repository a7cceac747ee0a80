"""recipes/train.py under accelerate launch: what befalls the launcher, or one of its processes, reaches them all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_distinct.files import checkpoints

pytestmark = pytest.mark.slow
RECIPES = Path(__file__).parents[2] / "recipes"
DDP = ["--config_file", str(RECIPES / "accelerate" / "ddp.yaml")]
ALONE = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
# Every process leaves its number, and a byte for each step; the second dies in its third, in the way that it is told.
REWARD = """
import os
import signal
from pathlib import Path
here = Path(__file__).parent
rank = os.environ.get("RANK", "0")

def watched(captions):
    (here / f"process-{rank}").write_text(str(os.getpid()))
    with (here / f"steps-{rank}").open("a") as file:
        file.write(".")
    if rank == "1" and (here / "steps-1").stat().st_size == 3:
        if (here / "raise").exists():
            raise RuntimeError("the reward service is gone")
        if (here / "kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
    return [len(caption) / 10 for caption in captions]
"""


@pytest.fixture
def launch(tiny_models, tmp_path):
    """Starts accelerate with settings of its own; what is said goes to a file."""
    (tmp_path / "reward.py").write_text(REWARD)
    started = []

    def start(*launcher: str) -> subprocess.Popen:
        settings = {
            "dataset": "emoji_scenes", "train_size": 64, "test_size": 8, "per_device_train_batch_size": 2,
            "max_steps": 4000, "num_rollouts": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2,
            "reward": f"{tmp_path / 'reward.py'}:watched", "reward_weights": 1, "max_reference_length": 14,
            "lr_scheduler_type": "constant", "discriminator_pretrain_steps": 0, "pool_neighbours": 0,
            "model_name_or_path": tiny_models / "captioner",
            "scorer": tiny_models / "scorer", "judge": tiny_models / "scorer", "output_dir": tmp_path / "out",
        }  # fmt: skip
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(RECIPES.parent), "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        with (tmp_path / "said").open("w") as said:
            accelerate = [sys.executable, "-m", "accelerate.commands.launch", *launcher]
            command = [*accelerate, str(RECIPES / "train.py"), *flags]
            started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
        return started[-1]

    yield start
    for each in started:
        each.kill()
    for number in processes(tmp_path):
        if alive(number):
            os.kill(number, signal.SIGKILL)


def processes(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("process-*")]


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    # A dead process whose parent has not asked for it yet is no orphan.
    status = Path(f"/proc/{number}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(happened, launcher: subprocess.Popen, said: Path) -> None:
    """Wait; the test's own patience is the only clock here."""
    end = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < end and launcher.poll() in (None, -signal.SIGTERM), said.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(("how", "count"), [(ALONE, 1), (DDP, 2)], ids=["one", "two"])
def test_a_launcher_that_gets_sigterm_leaves_a_checkpoint_and_no_orphan(launch, tmp_path, how, count):
    launcher = launch(*how)
    steps = [tmp_path / f"steps-{rank}" for rank in range(count)]
    wait_for(lambda: all(each.exists() and each.stat().st_size > 4 for each in steps), launcher, tmp_path / "said")
    numbers = processes(tmp_path)
    assert len(numbers) == count
    # Alone, accelerate dies of it without a word to its child, which has to notice.
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(timeout=120)
    wait_for(lambda: not any(map(alive, numbers)), launcher, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    done = min(each.stat().st_size for each in steps)
    assert f"stopped by SIGTERM after step {done}" in said and "Error" not in said.split("stopped by SIGTERM")[0]
    assert Path(checkpoints.choose("true", tmp_path / "out")).name == f"checkpoint-{done}"


@pytest.mark.parametrize(
    ("how", "message"),
    [("raise", "RuntimeError: the reward service is gone"), ("kill", "Signal 9 (SIGKILL) received by PID {second}")],
)
def test_a_process_that_dies_takes_the_others_with_it_and_says_why(launch, tmp_path, how, message):
    (tmp_path / how).touch()
    launcher = launch(*DDP)
    died = tmp_path / "steps-1"
    wait_for(lambda: died.exists() and died.stat().st_size == 3, launcher, tmp_path / "said")
    assert launcher.wait(timeout=60) != 0  # a minute for all of them to end in
    assert died.stat().st_size == 3
    assert len(processes(tmp_path)) == 2 and not any(map(alive, processes(tmp_path)))
    second = (tmp_path / "process-1").read_text()
    assert message.format(second=second) in (tmp_path / "said").read_text()
    assert Path(checkpoints.choose("true", tmp_path / "out")).name == "checkpoint-2"
