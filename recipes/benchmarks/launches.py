"""Train the same steps by every launch configuration, and put them beside one process.

    python recipes/benchmarks/launches.py                              # all of recipes/accelerate, two processes each
    python recipes/benchmarks/launches.py --launches one_process zero3 --processes 8
    python recipes/benchmarks/launches.py --launches one_process ddp --precision bf16

Beam search writes the same captions whoever holds the image, so the losses of a run can be held against those of one
process with the whole batch. Prints the table, and writes it and the runs into OUT:

    largest difference   of a step's loss from that of one process, in millionths of the largest loss
    peak GiB             the most that one process took: of its GPU, or of main memory where there is none
    relative speed       steps a second, without the first two, over those of one process
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_distinct.reporting import format_table
from hf_distinct.reporting.table import markdown_table
from hf_distinct.runs.arguments import clear_errors, parse_settings

RECIPES = Path(__file__).parents[1]
ONE = "one_process"
WARM_UP = 2  # first steps, in which memory is taken and kernels are chosen


@dataclass
class Settings:
    """Which launches, and how long."""

    launches: list[str] = field(
        default_factory=list, metadata={"help": "Names of files in recipes/accelerate. Default: all."}
    )
    processes: int = field(default=2, metadata={"help": "Number of processes of each launch except one_process."})
    steps: int = field(default=12, metadata={"help": "Number of steps of each run."})
    batch: int = field(default=32, metadata={"help": "Number of images per step, over all processes."})
    precision: Literal["float32", "bf16", "fp16"] = field(
        default="float32", metadata={"help": "Precision of the captioner."}
    )
    output_dir: str = field(default="outputs/launches", metadata={"help": "Folder for runs and the table."})


def train(launch: str, settings: Settings) -> list[dict[str, float]]:
    """One run of recipes/train.py; the log lines of its steps."""
    processes = 1 if launch == ONE else settings.processes
    output = Path(settings.output_dir) / launch
    flags: dict[str, Any] = {
        "output_dir": output, "max_steps": settings.steps, "per_device_train_batch_size": settings.batch // processes,
        "train_size": settings.batch * settings.steps, "test_size": 32, "logging_steps": 1, "disable_tqdm": True,
        "rollouts": "beam", "baseline": "none", "wtf_policy": "softmax", "wtf_weight": 1.0,
        "learning_rate": 1e-4,
    }  # fmt: skip
    if settings.precision != "float32":
        flags[settings.precision] = True
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(RECIPES / "accelerate" / f"{launch}.yaml"), "--num_processes", str(processes)]
    command += [str(RECIPES / "train.py")]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "log.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise ValueError(f"the launch {launch} failed; {output / 'log.txt'} says why")
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [line for line in history if "loss" in line]


def losses(lines: list[dict[str, float]]) -> list[float]:
    """Of each step, as it was: what the Trainer calls the loss is rounded."""
    return [line["loss/policy_gradient"] + line["loss/weighted_teacher_forcing"] for line in lines]


def compare(lines: list[dict[str, float]], one: list[dict[str, float]]) -> dict[str, float]:
    """The row of a run beside one process."""
    ours, theirs = losses(lines), losses(one)
    seconds, of_one = (statistics.mean(line["time/step"] for line in run[WARM_UP:]) for run in (lines, one))
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(map(abs, theirs))
    return {
        "largest difference, 1e-6": 1e6 * largest,
        "peak GiB": max(line["memory/peak_gib"] for line in lines),
        "steps a second": 1 / seconds,
        "relative speed": of_one / seconds,
    }


def main() -> None:
    """Run the launches and show the table."""
    (settings,) = parse_settings(Settings, description=__doc__)
    known = sorted(path.stem for path in (RECIPES / "accelerate").glob("*.yaml"))
    for launch in settings.launches:
        if launch not in known:
            raise ValueError(f"--launches {launch}: recipes/accelerate has no such file; it has {', '.join(known)}")
    if settings.batch % settings.processes or settings.steps <= WARM_UP:
        raise ValueError(f"--batch must be a multiple of --processes, and --steps more than {WARM_UP}")
    one = train(ONE, settings)
    rows = {ONE: compare(one, one)}
    for launch in settings.launches or known:
        if launch != ONE:
            rows[launch] = compare(train(launch, settings), one)
    table = {"settings": vars(settings), "rows": rows}
    (Path(settings.output_dir) / "launches.json").write_text(json.dumps(table, indent=1) + "\n")
    (Path(settings.output_dir) / "launches.md").write_text(markdown_table(rows, digits=2) + "\n")
    print(format_table(rows, digits=2))


if __name__ == "__main__":
    with clear_errors():
        main()
