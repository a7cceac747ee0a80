"""A training that is killed (SIGKILL) at random moments and taken up, held against one that nobody disturbed.

    PYTHONPATH=tests python tests/faults/kill_and_resume.py --kills 50
    PYTHONPATH=tests python tests/faults/kill_and_resume.py --kills 50 --processes 2
    PYTHONPATH=tests python tests/faults/kill_and_resume.py --kills 3 --config_file recipes/accelerate/zero2.yaml
    PYTHONPATH=tests python tests/faults/kill_and_resume.py --kills 10 --signals SIGTERM SIGINT

Of several processes one, drawn at random, gets the signal; the others have to end by themselves. A run that comes
to its end is compared and another one begins, until there were enough kills. Compared, to the bit: final weights; the
last checkpoint's optimiser, schedule, random states, discriminator with its optimiser, and memory; the log of the
losses and of all else that is neither time nor memory; best metric and step. Without --config_file everything is
imported once and each run is a fork, so that what is killed is a run and not Python's start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import TrainerCallback

from hf_distinct.files import checkpoints

STEPS, SAVE_STEPS, IMAGES, BATCH = 24, 3, 22, 4
PATIENCE = 60  # seconds that the others have to end in, after one was killed
# All that a step may depend on is switched on. Log lines and checkpoints do not fall together, nor do epochs.
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 2, "logging_steps": 4,
    "eval_strategy": "steps", "eval_steps": SAVE_STEPS, "metric_for_best_model": "eval_words",
    "memory_batches": 2, "pool_neighbours": 1, "hard_batches": True, "kl_weight": 0.1, "discriminator_weight": 0.3,
    "discriminator_lr": 1e-2, "discriminator_pretrain_steps": 1, "lr_scheduler_type": "linear",
    "wtf_policy": "softmax", "references_per_image": 2, "use_cpu": False, "learning_rate": 3e-3,
}  # fmt: skip


class Tell(TrainerCallback):
    """Leaves the process's number in a folder, and a byte in a file for all that happens."""

    def __init__(self, folder: Path) -> None:
        self.events = folder / "events"
        (folder / f"process-{os.environ.get('RANK', '0')}").write_text(str(os.getpid()))

    def tell(self, *args: Any, **kwargs: Any) -> None:
        with self.events.open("ab") as file:
            file.write(b".")

    on_step_begin = on_step_end = on_save = on_evaluate = tell


def train(models: Path, output: Path, telling: Path) -> None:
    """What is killed: take up whatever checkpoint there is, train to the end, save."""
    trainer = tiny.make_trainer(
        models, output, dataset=tiny.scenes(IMAGES), eval_dataset=tiny.scenes(5),
        caption_metrics=lambda captions, _: {"words": sum(map(len, map(str.split, captions))) / len(captions)},
        per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", "1")), **SETTINGS,
    )  # fmt: skip
    trainer.add_callback(Tell(telling))
    trainer.train(resume_from_checkpoint="true")
    trainer.save_model()
    trainer.save_state()
    trainer.accelerator.end_training()


def canonical(path: Path) -> bytes:
    """What a file holds; the bytes of a pickled state also tell which of its equal strings are one object."""
    if not path.name.startswith("rl_state"):
        return path.read_bytes()
    return repr(plain(torch.load(path, weights_only=True))).encode()


def plain(value: Any) -> Any:
    """Nested state with numbers in the place of tensors."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in sorted(value.items())}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value


def content(output: Path) -> dict[str, Any]:
    """All of a finished run that an undisturbed one would have left in the same way."""
    last = output / f"checkpoint-{STEPS}"
    files = [output / "model.safetensors", *last.rglob("*.pt"), *last.rglob("*.pth"), last / "model.safetensors"]
    found: dict[str, Any] = {
        path.relative_to(output).as_posix(): hashlib.sha256(canonical(path)).hexdigest() for path in sorted(files)
    }
    state = json.loads((output / "trainer_state.json").read_text())
    of_the_machine = ("time/", "memory/", "eval_runtime")
    found["log"] = [
        {name: v for name, v in line.items() if not name.startswith(of_the_machine) and "_per_second" not in name}
        for line in state["log_history"] if "train_runtime" not in line
    ]  # fmt: skip
    return found | {name: state[name] for name in ("global_step", "best_metric", "best_global_step")}


class Run:
    """One start of the training, in as many processes as asked for."""

    def __init__(self, models: Path, output: Path, telling: Path, arguments: argparse.Namespace) -> None:
        shutil.rmtree(telling, ignore_errors=True)
        telling.mkdir()
        (telling / "events").touch()
        self.telling, self.log = telling, (telling / "log").open("wb")
        if arguments.config_file:
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", arguments.config_file]
            command = [*launch, __file__, "--train", str(models), str(output), str(telling)]
            self.launcher = subprocess.Popen(command, stdout=self.log, stderr=self.log)
            self.children: list[int] = []
            return
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(arguments.processes)}
        ranks = range(arguments.processes)
        self.children = [
            self._fork(lambda: train(models, output, telling), place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            if arguments.processes > 1 else self._fork(lambda: train(models, output, telling), {})
            for rank in ranks
        ]  # fmt: skip

    def _fork(self, work: Callable[[], None], place: dict[str, str]) -> int:
        if child := os.fork():
            return child
        code = 1
        try:
            os.dup2(self.log.fileno(), 1)
            os.dup2(self.log.fileno(), 2)
            os.environ.update(place)
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  the end of this process, whatever it is
            code = error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
            os.write(2, f"\n{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def wait_for(self, events: int) -> bool:
        """Wait until so much has happened; False if the run ended before."""
        while (self.telling / "events").stat().st_size < events:
            if self.over():
                return False
            time.sleep(0.002)
        return True

    def over(self) -> bool:
        """Whether every process has ended."""
        if not self.children:
            return self.launcher.poll() is not None
        return all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in self.children)

    def send_one(self, number: int, generator: random.Random) -> None:
        """A signal to one of the processes that train; none if it has ended already."""
        children = self.children or [int(path.read_text() or 0) for path in sorted(self.telling.glob("process-*"))]
        if children and (child := generator.choice(children)):
            os.kill(child, number)

    def end(self) -> tuple[list[int], float]:
        """The statuses of all processes, and the seconds until the last has ended."""
        begin = time.monotonic()
        while not self.over():
            assert time.monotonic() - begin < 10 * PATIENCE, (self.telling / "log").read_text()
            time.sleep(0.01)
        seconds = time.monotonic() - begin
        if not self.children:
            return [self.launcher.returncode], seconds
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in self.children], seconds


def main(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run undisturbed, then with kills; what was found."""
    generator = random.Random(arguments.seed)
    models = tiny.build_models(folder / "models")
    # A fork of a process in which threads of torch have run would wait for them forever.
    assert torch.get_num_threads() == 1, "start with OMP_NUM_THREADS=1"
    run = Run(models, folder / "undisturbed", folder / "telling", arguments)
    begin = time.monotonic()
    codes, _ = run.end()
    assert set(codes) == {0}, (folder / "telling" / "log").read_text()
    pace = (time.monotonic() - begin) / (2 * STEPS)
    events = (folder / "telling" / "events").stat().st_size
    undisturbed = content(folder / "undisturbed")
    report: dict[str, Any] = {"kills": 0, "torn": 0, "slowest_end": 0.0, "statuses": {}, "same": []}
    output = folder / "killed"
    while report["kills"] < arguments.kills or output.exists():
        run = Run(models, output, folder / "telling", arguments)
        # A third of a run at most, so that kills fall all over it and it ends some day.
        name = arguments.signals[report["kills"] % len(arguments.signals)]
        # Only SIGKILL means anything before training begins.
        happenings = generator.randint(name != "SIGKILL", math.ceil(events / 3))
        happened = report["kills"] < arguments.kills and run.wait_for(happenings)
        if happened:
            time.sleep(generator.uniform(0, pace))
            run.send_one(signal.Signals[name], generator)
        codes, seconds = run.end()
        if set(codes) == {0}:
            found = content(output)
            report["same"].append(found == undisturbed)
            if found != undisturbed:
                report["differs"] = [name for name in undisturbed if found.get(name) != undisturbed[name]]
                break
            shutil.rmtree(output)
            continue
        assert happened, (folder / "telling" / "log").read_text()
        report["kills"] += 1
        report["statuses"][name] = sorted({*report["statuses"].get(name, []), *codes})
        report["slowest_end"] = max(report["slowest_end"], seconds)
        report["torn"] += any(checkpoints.damage(path) for path in output.glob("checkpoint-*"))
    return report | {"checksum": undisturbed["model.safetensors"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--signals", nargs="+", default=["SIGKILL"], help="in turn")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--config_file", help="launch with accelerate instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs=3, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(*given.train)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            found = main(given, Path(temporary))
        print(json.dumps(found, indent=1))  # noqa: T201  what this script is run for
        sys.exit(not (found["same"] and all(found["same"])))
