"""Measure what grows with the data: CPU seconds and memory of each stage, from a file of captions to a web page.

    python recipes/benchmarks/growth.py                                       # 1, 10 and 100 thousand images
    python recipes/benchmarks/growth.py --images 1000 10000 100000 1000000    # about an hour
    git worktree add ../before REVISION                                       # another revision, and both side by side
    python recipes/benchmarks/growth.py --checkout ../before --output before.json
    python recipes/benchmarks/growth.py --before before.json

The data are hard links of few JPEGs of 16 x 16 pixels with five captions each, and drawn embeddings (see
growth_data.py); the models are the shipped ones. Each stage (see growth_stages.py) runs in a process of its own, on
one thread, after imports, models and what it starts from. For each number of images:

    CPU s      seconds of the processor, with children; with two processes, of both
    memory     MB of private memory, the most that a process held above that at the start of the stage
    resident   MB, the same with the pages of files that are mapped, which the system shares and takes back as it likes
    written    MB that the stage wrote

The exponent p is that of the nearest curve `fixed + rate * images ** p`; it is 0 where nothing grows. A verdict on a
number of images that was not measured, but a tenth of which was, comes from this curve and is marked ~.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from growth_data import make_data
from growth_stages import STAGES

from hf_distinct.runs.arguments import clear_errors, parse_settings

HERE = Path(__file__).parents[2]
FIGURES = {"cpu": "CPU s", "memory": "memory, MB", "resident": "resident, MB", "written": "written, MB"}
FORMS = ("Karpathy JSON", "folder", "tars", "parquet")
PROCESSES = {"embedded, second process": 2, "start, two processes": 2}
FURTHEST = 10
"""How many times the largest number of images that was measured a curve is trusted for."""
NOISE = {"cpu": 0.1, "memory": 20.0, "resident": 20.0, "written": 1.0}
"""Differences that mean nothing, as those of less than a fifth."""
Found = dict[str, dict[str, dict[str, Any]]]
"""Figures by stage and number of images; instead of them `error` or `left out`, in words."""


@dataclass
class Settings:
    """What to measure."""

    images: list[int] = field(
        default_factory=lambda: [1000, 10_000, 100_000], metadata={"help": "Numbers of images, in rising order."}
    )
    folder: str = field(default="outputs/growth", metadata={"help": "Folder for data and caches; 13 kB an image."})
    stages: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of stages to measure again, with the caches of an earlier run. Default: all, anew."},
    )
    checkout: str = field(default=str(HERE), metadata={"help": "Checkout to measure. Default: this one."})
    before: str | None = field(default=None, metadata={"help": "JSON of another revision to compare with."})
    minutes: float = field(
        default=3.0,
        metadata={"help": "Leave out a stage that would take longer on the processor, by smaller numbers of images."},
    )
    output: str | None = field(
        default=None, metadata={"help": "JSON file for all that was measured, written after each stage."}
    )


class Curve(NamedTuple):
    """The curve ``fixed + rate * images ** exponent``."""

    fixed: float
    rate: float
    exponent: float

    def at(self, images: float) -> float:
        """Return its value."""
        return self.fixed + self.rate * images**self.exponent


def fit(values: Mapping[int, float], noise: float = 0.0) -> Curve:
    """Find the curve that is nearest to measured values, by relative distance.

    Args:
        values: at least one, by number of images.
        noise: differences up to this size, or up to a fifth, are no growth.
    """
    sizes, found = np.array(list(values), dtype=np.float64), np.array(list(values.values()), dtype=np.float64)
    if np.ptp(found) <= max(noise, 0.2 * abs(found).max()):
        return Curve(float(found.max()), 0.0, 0.0)
    weights = 1 / np.maximum(found, noise or 1e-9)
    curves: list[tuple[float, Curve]] = []
    for exponent in np.arange(5, 301, 5) / 100:
        columns = np.stack([np.ones(len(sizes)), sizes**exponent], axis=1)
        columns[:, 0] *= len(sizes) > 2  # two values do not tell a fixed part
        for free in (columns, columns * [0, 1]):
            fixed, rate = np.linalg.lstsq(free * weights[:, None], found * weights, rcond=None)[0]
            if fixed >= 0 and rate >= 0:
                distance = float((((free @ [fixed, rate] - found) * weights) ** 2).sum())
                curves.append((round(distance, 9), Curve(float(fixed), float(rate), float(exponent))))
    return min(curves)[1]


def figures(found: Found, stage: str, figure: str) -> dict[int, float]:
    """Return the measured values of a figure, by number of images."""
    return {int(size): row[figure] for size, row in found.get(stage, {}).items() if figure in row}


class Target(NamedTuple):
    """What a figure of a stage may be.

    Attributes:
        stage: the stage.
        figure: its figure.
        most: its bound.
        images: the number of images that the bound is for; None: every number, so the largest that was measured.
        per_image: the bound is one in bytes an image.
        above: what is subtracted from the figure: that of a stage, or of the smallest number of images ("smallest").
        times: the stage whose growth the bound is relative to.
    """

    stage: str
    figure: str
    most: float
    images: int | None = None
    per_image: bool = False
    above: str | None = None
    times: str | None = None

    def judge(self, found: Found) -> dict[str, str] | None:
        """Return the row of this target; None where it cannot be told."""
        values = figures(found, self.stage, self.figure)
        if not values:
            return None
        size = self.images or max(values)
        least, exact = min(values), size in values
        if not exact and (len(values) < 2 or size > FURTHEST * max(values)):
            return None
        if self.above == "smallest" and size == least:
            return None
        value, unit = self._value(found, self.stage, size), FIGURES[self.figure]
        if self.above == "smallest":
            value, unit = value - values[least], f"{unit} above that of {least:,}"
        elif self.above:
            value, unit = value - self._value(found, self.above, size), f"{unit} above {self.above}"
        if self.times:
            one = self._value(found, self.times, size) - self._value(found, self.times, least)
            value, unit = value / one, f"{unit}, times that of {self.times}"
        if self.per_image:
            value, unit = value * 1e6 / size, unit.replace("MB", "bytes an image")
        return {
            "stage": self.stage, "figure": unit, "images": f"{size:,}", "target": f"{self.most:g}",
            "found": f"{'' if exact else '~'}{value:.4g}", "verdict": "met" if value <= self.most else "missed",
        }  # fmt: skip

    def _value(self, found: Found, stage: str, size: int) -> float:
        values = figures(found, stage, self.figure)
        return values[size] if size in values else fit(values, NOISE[self.figure]).at(size)


TARGETS = (
    *(Target(f"{form}{again}", "memory", 200.0) for form in FORMS for again in ("", ", again")),
    *(Target(form, "cpu", 5.0, 600_000, above="checks of files") for form in FORMS[:2]),
    Target("embedding", "memory", 50.0, above="smallest"),
    Target("embedded", "memory", 50.0, above="smallest"),
    Target("embedded, second process", "cpu", 1.0, 600_000),
    Target("mining", "memory", 50.0, above="smallest"),
    Target("mined", "memory", 50.0, above="smallest"),
    Target("carved splits", "written", 64.0, per_image=True),
    Target("carved splits", "memory", 50.0, above="smallest"),
    Target("start, two processes", "cpu", 1.2, above="smallest", times="start"),
    Target("first step", "cpu", 12.0, 600_000),
    Target("first step", "memory", 200.0, above="smallest"),
    Target("later step", "cpu", 0.1, above="smallest"),
    Target("checkpoint", "written", 1.0, above="smallest"),
    Target("resumed at 90 %", "memory", 50.0, above="smallest"),
    Target("CIDEr-D reward", "memory", 200.0),
    Target("CIDEr-D reward, again", "cpu", 1.0),
    Target("caption figures", "cpu", 45.0, 100_000),
    Target("caption figures", "memory", 300.0),
    Target("bootstrap", "memory", 300.0),
    Target("novelty", "memory", 300.0),
    Target("retrieval", "memory", 300.0),
)
"""The targets of every number of images are for the largest that was measured."""


# ---------------------------------------------------------------------------------------------------------- measuring

class Child:
    """A process of a stage, whose memory is followed from outside."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.begin: float | None = None
        self.end: dict[str, float] | None = None
        self.peak = 0.0
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.listener = threading.Thread(target=self._listen)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("growth: begin"):
                self.begin = float(line.split()[2])
            elif line.startswith("growth: end"):
                self.end = json.loads(line.split(maxsplit=2)[2])

    def look(self) -> bool:
        """Note the private memory that it holds now; return whether it still runs."""
        if self.begin is not None and self.end is None:
            try:
                status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            except OSError:
                status = []
            held = sum(int(line.split()[1]) for line in status if line.startswith(("RssAnon:", "RssShmem:")))
            self.peak = max(self.peak, held * 1024 / 1e6)
        return self.process.poll() is None

    def figures(self) -> dict[str, float] | None:
        """Return what it has measured."""
        self.listener.join()
        if self.process.returncode or self.begin is None or self.end is None:
            return None
        return {**self.end, "memory": max(self.peak - self.begin, 0.0)}


def measure(stage: str, data: Path, checkout: Path) -> dict[str, Any]:
    """Run a stage in a process of its own, or in two; its figures, or `error`."""
    work = data / "work"
    cache = stage.split(",")[0] if stage.startswith(FORMS) or stage == "carved splits, embedding" else "all"
    environment = {
        **os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "datasets" / cache), "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    count = PROCESSES.get(stage, 1)
    if count > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        numbers = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment |= {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(Path(__file__).with_name("growth_stages.py")), stage, str(data), str(work)]
    logs = [work / f"{stage}.{rank}.txt" for rank in range(count)]
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {} for rank in range(count)]
    children = [Child(command, environment | rank, log) for rank, log in zip(ranks, logs, strict=True)]
    try:
        while any([child.look() for child in children]):
            time.sleep(0.01)
    finally:
        for child in children:
            child.process.kill()
    found = [child.figures() for child in children]
    good = [each for each in found if each is not None]
    if len(good) < count:
        lines = logs[found.index(None)].read_text().strip().splitlines()
        return {"error": lines[-1] if lines else "it said nothing"}
    if stage == "embedded, second process":
        return good[1]
    return {name: (max if name in ("memory", "resident") else sum)(each[name] for each in good) for name in good[0]}


def too_much(found: Found, stage: str, images: int, minutes: float) -> str | None:
    """Return why a stage would take too much of this machine, by what smaller numbers of images took."""
    cpu, memory = (figures(found, stage, figure) for figure in ("cpu", "memory"))
    if len(cpu) < 2:
        return None
    seconds, needed = (fit(each, NOISE[name]).at(images) for name, each in (("cpu", cpu), ("memory", memory)))
    if seconds > 60 * minutes:
        return f"it would take {seconds / 60:.0f} minutes (--minutes {minutes:g})"
    if needed > 0.8 * psutil.virtual_memory().available / 1e6:
        return f"it would take {needed / 1000:.1f} GB"
    return None


# ------------------------------------------------------------------------------------------------------------ showing

def short(value: float | None) -> str:
    """Format a figure in three digits."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.005 else "0"


def markdown(rows: list[dict[str, str]]) -> str:
    """Format rows with equal keys as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table(found: Found, sizes: list[int]) -> str:
    """Show seconds and memory of each stage by number of images, and how they grow."""
    rows = []
    for stage in found:
        row = {"stage": stage}
        for figure in ("cpu", "memory"):
            values = figures(found, stage, figure)
            row |= {f"{FIGURES[figure]}: {size:,}": short(values.get(size)) for size in sizes}
            curve = fit(values, NOISE[figure]) if len(values) > 1 else None
            row[f"{figure} exponent"] = f"{curve.exponent:.2f}" if curve else ""
        for figure in ("resident", "written"):
            row[f"{FIGURES[figure]}: {sizes[-1]:,}"] = short(figures(found, stage, figure).get(sizes[-1]))
        rows.append(row)
    return markdown(rows)


def beside(before: Found, after: Found) -> str:
    """Show two revisions at the largest number of images that both have."""
    rows = []
    for stage in after:
        sizes = figures(before, stage, "cpu").keys() & figures(after, stage, "cpu").keys()
        if not sizes:
            continue
        row = {"stage": stage, "images": f"{max(sizes):,}"}
        for figure, name in FIGURES.items():
            for when, of in (("before", before), ("after", after)):
                row[f"{name}, {when}"] = short(figures(of, stage, figure).get(max(sizes)))
        rows.append(row)
    return markdown(rows) if rows else "The two have no stage in common."


def describe(checkout: Path) -> str:
    """Return the revision of a checkout, as git names it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def main() -> None:
    """Make the data, measure, fit, judge."""
    (settings,) = parse_settings(Settings, description=__doc__)
    if unknown := [stage for stage in settings.stages if stage not in STAGES]:
        raise ValueError(f"--stages {unknown[0]!r} is unknown: choose among {', '.join(STAGES)}.")
    if settings.images != sorted(set(settings.images)) or settings.images[0] < 100:
        raise ValueError("--images should rise, from at least 100.")
    checkout, found = Path(settings.checkout).resolve(), Found()
    report = {"revision": describe(checkout), "settings": vars(settings), "stages": found}
    for images in settings.images:
        data = Path(settings.folder).resolve() / str(images)
        make_data(data, images)
        if not settings.stages:
            shutil.rmtree(data / "work", ignore_errors=True)
        (data / "work").mkdir(exist_ok=True)
        for stage in settings.stages or STAGES:
            reason = too_much(found, stage, images, settings.minutes)
            row: dict[str, Any] = {"left out": reason} if reason else measure(stage, data, checkout)
            found.setdefault(stage, {})[str(images)] = row
            if settings.output:
                Path(settings.output).write_text(json.dumps(report, indent=1) + "\n")
            told = row.get("error") or reason or ", ".join(f"{k} {v:.2f}" for k, v in row.items())
            print(f"{images:,} images, {stage}: {told}", file=sys.stderr, flush=True)
    print(table(found, settings.images))
    judged = [verdict for target in TARGETS if (verdict := target.judge(found))]
    if judged:
        print(f"\n{markdown(judged)}")
    if settings.before:
        before = json.loads(Path(settings.before).read_text())
        print(f"\nbefore: {before['revision']}; after: {report['revision']}\n\n{beside(before['stages'], found)}")


if __name__ == "__main__":
    with clear_errors():
        main()
