"""What gpu.py measures in processes of their own: a step, where its time goes, and ways to write captions.

    python recipes/benchmarks/gpu_parts.py step --output step.json               # on a GPU, at base size
    python recipes/benchmarks/gpu_parts.py profile --output profile.json --small # on a CPU, the shipped models

Figures are written after each measurement, so that a run that is cut off leaves what it has.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from models import base_models, small_models
from step import batches, make_trainer, medians, operations_counter, ratios, take_turns
from step_ways import ours
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from hf_distinct.families import encoder_outputs
from hf_distinct.generation.labels import join_labels, to_labels
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.runs.arguments import clear_errors

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
NOMINAL = {("H100", "bf16"): 989.0, ("H200", "bf16"): 989.0, ("H100", "float32"): 67.0, ("H200", "float32"): 67.0}
"""TFLOP/s of dense products by the datasheets of the SXM cards; float32 without TF32, which torch leaves off."""
TOP = 12


class Report:
    """Figures that are on the disk as soon as they are known."""

    def __init__(self, path: Path) -> None:
        self.path, self.figures = path, dict[str, Any]()

    def add(self, name: str, value: Any) -> None:
        """Keep, show and write."""
        self.figures[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        self.path.write_text(json.dumps(self.figures, indent=1) + "\n")


def wait() -> None:
    """Wait for the GPU, if there is one."""
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], times: int) -> float:
    """The median time of some work, once it has been done before."""
    work()
    found = []
    for _ in range(times):
        wait()
        began = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def matrix_rate(dtype: torch.dtype) -> float:
    """TFLOP/s of a large square product of random numbers on this device."""
    size = 8192 if CUDA else 256
    one, other = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: one @ other, 10) / 1e12


# --------------------------------------------------------------------------------------------------------------- step


def step(report: Report, small: bool) -> None:
    """Ours beside the reference structure and the floor, by precision, way of writing and batch."""
    models = load_models(small)
    batches, repetitions = ((2,), 1) if small else ((128, 64, 16), 3)
    rates = {"bf16": matrix_rate(torch.bfloat16), "float32": matrix_rate(torch.float32)}
    report.add("matrix products, TFLOP/s", rates)
    for precision, rate in rates.items():
        for rollouts in ("sample", "beam"):
            for images in batches:
                point = measure_point(models, precision, rollouts, images, repetitions, rate)
                report.add(f"{precision}, {rollouts}, {images} images", point)


def measure_point(
    models: tuple[Any, ...], precision: str, rollouts: str, images: int, repetitions: int, rate: float
) -> dict[str, Any]:
    """Medians of each way and the ratios between them; without the reference where it does not fit."""
    trainer: Any
    for names in (("ours", "reference", "floor"), ("ours", "floor"), ("ours",)):
        try:
            with tempfile.TemporaryDirectory() as folder:
                trainer = make_trainer(models, rollouts, images, Path(folder), 1, precision == "bf16")
                # Rounding on a GPU may decide between two beams, and then losses differ by more than rounding.
                turns = take_turns(trainer, repetitions, names, tolerance=math.inf)
                point: dict[str, Any] = {way: medians(rows) for way, rows in turns.items()}
                for ratio, values in ratios(turns, rollouts).items():
                    point[ratio] = [statistics.median(values), min(values), max(values)]
                point["use of the matrix rate"] = utilisation(trainer, point["ours"], rate, precision)
            return point
        except torch.OutOfMemoryError:
            print(f"{', '.join(names)} with {images} images: out of memory", flush=True)
        finally:
            trainer = None
            gc.collect()
            torch.cuda.empty_cache()
    return {"out of memory": True}


def utilisation(trainer: Any, measured: dict[str, float], rate: float, precision: str) -> dict[str, float]:
    """The operations of scoring and backward pass over their time, as a share of the device's rate of products."""
    found: dict[str, float] = defaultdict(float)
    counter, batch = operations_counter(), batches(trainer)[0]
    with phases(trainer, lambda: counter.get_total_flops() / 1e12, found), counter:
        ours(trainer, batch)
    inside = sum(count for name, count in found.items() if name != "step")
    tflop = found["score"] + found["step"] - inside
    speed = tflop / (measured["score"] + measured["backward"])
    shares = {"TFLOP": tflop, "TFLOP/s": speed, "of a large product": speed / rate}
    for (card, of_precision), nominal in NOMINAL.items():
        if CUDA and card in torch.cuda.get_device_name() and of_precision == precision:
            shares["of the datasheet"] = speed / nominal
    return shares


@contextmanager
def phases(trainer: Any, clock: Callable[[], float], found: dict[str, float]) -> Iterator[None]:
    """Add up, by phase of the trainer's step, what a clock of any kind advances; the profiler sees the phases too."""
    usual = trainer.meter.phase

    @contextmanager
    def watched(name: str) -> Iterator[None]:
        began = clock()
        with record_function(f"phase {name}"), usual(name):
            yield
            found[name] += clock() - began

    trainer.meter.phase = watched
    try:
        yield
    finally:
        trainer.meter.phase = usual


# ------------------------------------------------------------------------------------------------------------ profile


def profile_step(report: Report, small: bool) -> None:
    """Where the time of one step goes: how busy the device is in each phase, and with which kernels."""
    models, images = load_models(small), 2 if small else 64
    with tempfile.TemporaryDirectory() as folder:
        for rollouts in ("sample", "beam"):
            trainer = make_trainer(models, rollouts, images, Path(folder), 1, bf16=True)
            trainer.model.eval()
            batch = batches(trainer)[0]
            for _ in range(2):
                ours(trainer, batch)
            wait()
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
            host: dict[str, float] = defaultdict(float)
            with profile(activities=activities) as found, phases(trainer, waited_clock, host):
                ours(trainer, batch)
            report.add(rollouts, profile_figures(found.events()))


def waited_clock() -> float:
    """The time when the device has done what it was given, so that its work falls into the phase that gave it."""
    wait()
    return time.perf_counter()


def profile_figures(events: Any) -> dict[str, Any]:
    """Of each phase: time, the share in which the device worked, kernels; and the kernels that take longest."""
    marks = [each for each in events if each.name.startswith("phase ") and each.device_type == DeviceType.CPU]
    # Without a GPU, operators take the place of kernels.
    kind = DeviceType.CUDA if CUDA else DeviceType.CPU
    kernels = [each for each in events if each.device_type == kind and not each.name.startswith("phase ")]
    spans = {each.name.removeprefix("phase "): (each.time_range.start, each.time_range.end) for each in marks}
    spans["backward"] = spans["score"][1], spans["step"][1]
    figures: dict[str, Any] = {}
    for name, (begin, end) in spans.items():
        inside = [each.time_range for each in kernels if begin <= each.time_range.start < end]
        busy = covered([(max(each.start, begin), min(each.end, end)) for each in inside])
        figures[name] = {"ms": (end - begin) / 1e3, "device busy": busy / (end - begin), "kernels": len(inside)}
    took: dict[str, list[float]] = defaultdict(list)
    for each in kernels:
        took[each.name].append((each.time_range.end - each.time_range.start) / 1e3)
    longest = sorted(took, key=lambda name: -sum(took[name]))[:TOP]
    return {"phases": figures, "kernels": {name[:90]: [len(took[name]), sum(took[name])] for name in longest}}


def covered(spans: list[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return total


# ----------------------------------------------------------------------------------------------------------- decoding


def decoding(report: Report, small: bool) -> None:
    """Greedy captions: by `generate`, by our cache, and by a static cache with and without a compiled decoder."""
    captioner, _, image_processor, _ = load_models(small)
    images, size = 2 if small else 64, image_processor.size
    pixels = torch.randn(images, 3, size["height"], size["width"])
    found = {}
    # Not by autocast, which would hand a static cache two types; and a model each, for a model keeps its static cache.
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        model = copy.deepcopy(captioner).to(DEVICE, dtype).eval()
        with torch.no_grad():
            found[precision] = ways_to_write(model, model.encoder(pixels.to(DEVICE, dtype)).last_hidden_state)
    with torch.no_grad():
        for name in found["bf16"]:  # the compiler, which may take long, comes last
            for precision, ways in found.items():
                figures = decoding_figures(ways[name], ways["generate"](), 1 if small else 5)
                report.add(f"{name}, {precision}", figures)


def ways_to_write(model: Any, hidden: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to write greedy captions of encoded images, as labels."""
    usual = model.decoder.forward
    compiler: dict[str, Any] = {"mode": "reduce-overhead"} if CUDA else {"backend": "aot_eager"}
    fast = torch.compile(usual, dynamic=False, **compiler)

    def generated(**how: Any) -> torch.Tensor:
        config = rollout_config(model, **how)
        return to_labels(model, model.generate(encoder_outputs=encoder_outputs(hidden), generation_config=config))

    def compiled() -> torch.Tensor:
        model.decoder.forward = fast
        try:
            return generated(cache_implementation="static")
        finally:
            model.decoder.forward = usual

    return {
        "generate": generated,
        "ours": lambda: generate_labels(model, hidden, rollout_config(model)),
        "static cache": lambda: generated(cache_implementation="static"),
        "static cache, compiled": compiled,
    }


def decoding_figures(way: Callable[[], torch.Tensor], expected: torch.Tensor, times: int) -> dict[str, Any]:
    """Seconds of a way to write, and the share of captions that are those expected; or why it cannot."""
    try:
        seconds, found = seconds_of(way, times), way()
    except Exception as error:  # of compilers and caches, whatever it is: the others are still measured
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    one, other = join_labels(found, expected).chunk(2)
    return {"seconds": seconds, "same captions": (one == other).all(dim=1).float().mean().item()}


def load_models(small: bool) -> tuple[Any, ...]:
    """Captioner, tokenizer, image processor and scorer, always the same ones."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        return (small_models if small else base_models)(Path(folder))


def main() -> None:
    """Measure one part."""
    parts = {"step": step, "profile": profile_step, "decoding": decoding}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--small", action="store_true", help="the shipped models and a few pictures, as a rehearsal")
    arguments = parser.parse_args()
    parts[arguments.part](Report(arguments.output), arguments.small)


if __name__ == "__main__":
    with clear_errors():
        main()
