"""Recipes on tiny inputs as processes that can be disturbed, and what of their results no fault may change."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import forked
import numpy as np
import tiny
from safetensors.torch import load_file

IMAGES = 18
PATIENCE = 120
"""Seconds in which every run ends; one that does not waits for ever."""
TRACEBACK = "Traceback (most recent call last)"
TRAINING: dict[str, object] = {
    "max_steps": 6, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "use_cpu": True,
    "disable_tqdm": True, "resume_from_checkpoint": "true",
}  # fmt: skip
RL: dict[str, object] = {
    "num_rollouts": 2, "max_reference_length": 14, "eval_strategy": "no", "eval_on_start": False, "memory_batches": 1,
    "discriminator_pretrain_steps": 1,
}  # fmt: skip
PRELOAD = ["__main__", *forked.IMPORTS, "deepspeed", "faiss", "matplotlib.pyplot"]
"""Imported once, for all runs."""


@dataclass(frozen=True)
class Job:
    """A recipe with its settings.

    Attributes:
        recipe: its file.
        settings: the command line, without the folder that it writes to.
        compared: patterns of the files below that folder which must be the same in the end, whatever happened.
        processes: how many do it together.
    """

    recipe: str
    settings: tuple[object, ...]
    compared: tuple[str, ...]
    processes: int = 1

    def content(self, output: Path) -> dict[str, str]:
        """Digests of what is compared."""
        files = sorted({path for pattern in self.compared for path in output.glob(pattern) if path.is_file()})
        return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def inputs(folder: Path) -> tuple[Path, Path]:
    """Write captioned pictures and tiny models; returns both folders."""
    pictures = folder / "pictures"
    pictures.mkdir()
    splits, lines = ("train", "train", "validation", "train", "test", "train"), []
    for number, row in enumerate(tiny.scenes(IMAGES)):
        row["image"].save(pictures / f"{number}.png")
        split = splits[number % len(splits)]
        lines.append(json.dumps({"file_name": f"{number}.png", "captions": row["captions"], "split": split}))
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    return pictures, tiny.build_models(folder / "models")


def flags(settings: dict[str, object]) -> tuple[object, ...]:
    """Settings as words of a command line."""
    return tuple(word for name, value in settings.items() for word in (f"--{name}", value))


def jobs(pictures: Path, models: Path) -> dict[str, Job]:
    """Every recipe that people wait for, by its name."""
    data, captioner, scorer = ("--dataset", pictures), models / "captioner", ("--scorer", models / "scorer")
    rl = (*data, "--model_name_or_path", captioner, *scorer, "--judge", models / "scorer", *flags(RL | TRAINING))
    trained = ("model.safetensors", "discriminator.safetensors", "captions.json", "metrics.json")
    mining = (*data, *scorer, "--num_workers", 0)
    mined = (f"embeddings-{24 * '?'}/*.npy", "neighbours.safetensors", "statistics.json")
    measuring = (*data, *scorer, "--model", captioner, "--resamples", 20, "--num_neighbours", 1)
    captioning = (pictures, "--model", captioner, "--num_workers", 0, "--batch_size", 2)
    return {
        "train": Job("train.py", rl, trained),
        "train, two processes": Job("train.py", (*rl, "--ddp_timeout", 20), trained, 2),
        "warm_up": Job("warm_up.py", (*data, "--model_name_or_path", captioner, *flags(TRAINING)), trained),
        "train_clip": Job(
            "train_clip.py",
            (*data, "--model", models / "scorer", "--max_steps", 6, "--eval_steps", 1, "--batch_size", 4),
            ("open_clip_model.safetensors", "metrics.json"),
        ),
        "mine": Job("mine.py", mining, mined),
        "mine, two processes": Job("mine.py", (*mining, "--ddp_timeout", 20), mined, 2),
        "evaluate": Job("evaluate_captions.py", measuring, ("metrics.json", "intervals.json", "captions/*.json")),
        "caption": Job("caption.py", captioning, ("captions.jsonl",)),
        "caption, two processes": Job("caption.py", (*captioning, "--ddp_timeout", 20), ("captions.jsonl",), 2),
    }


@dataclass
class Ended:
    """How a run ended: the status of each process, what they said, and whether somebody had to end them."""

    codes: list[int]
    said: str
    seconds: float
    hung: bool = False

    @property
    def well(self) -> bool:
        """Whether every process says that all is done."""
        return not self.hung and set(self.codes) == {0}


@dataclass
class Run:
    """A job at work; its processes are those of `forked`."""

    job: Job
    output: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._told = Path(tempfile.mkdtemp(prefix="told-"))
        self._begin = time.monotonic()
        command = [forked.RECIPES / self.job.recipe, *self.job.settings, "--output_dir", self.output]
        places: list[dict[str, str]] = [dict(os.environ)]
        if self.job.processes > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            places = tiny.ranks(port, self.job.processes)
        said = [str(self._told / name) for name in ("stdout", "stderr")]
        self.processes = [
            forked.start([*map(str, command)], place | self.environment, *said) for place in places
        ]

    def wait_for(self, pattern: str) -> bool:
        """Wait until a file of this pattern is there; False if the run ended before."""
        while not any(self.output.glob(pattern)):
            if self.over(0.0005):
                return False
        return True

    def over(self, seconds: float) -> bool:
        """Whether all processes end in so many seconds."""
        end = time.monotonic() + seconds
        left = [each.sentinel for each in self.processes if each.exitcode is None]
        while left and (patience := end - time.monotonic()) > 0:
            wait(left, patience)
            left = [each.sentinel for each in self.processes if each.exitcode is None]
        return not left

    def send(self, number: signal.Signals, rank: int = 0) -> bool:
        """Send a signal to one of the processes; False if it has ended already."""
        process = self.processes[rank]
        if process.exitcode is not None or process.pid is None:
            return False
        os.kill(process.pid, number)
        return True

    def end(self) -> Ended:
        """Wait for the end."""
        hung = not self.over(PATIENCE)
        for process in self.processes:
            process.kill()
            process.join()
        said = "".join(path.read_text(errors="replace") for path in sorted(self._told.iterdir()))
        shutil.rmtree(self._told)
        codes = [-1 if process.exitcode is None else process.exitcode for process in self.processes]
        return Ended(codes, said, time.monotonic() - self._begin, hung)


def torn(output: Path) -> str:
    """The first file that is not whole but bears the name of one that is; checkpoints have seals."""
    readers = {
        ".safetensors": load_file, ".npy": np.load, ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    }  # fmt: skip
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        hidden = any(part.startswith(".") or ".parts" in part or ".broken" in part for part in name.parts)
        if path.suffix not in readers or hidden or name.parts[0].startswith("checkpoint-"):
            continue
        try:
            readers[path.suffix](path)
        except Exception as error:  # noqa: BLE001  whatever a reader makes of a torn file
            return f"{name}: {type(error).__name__}: {error}"
    return ""
