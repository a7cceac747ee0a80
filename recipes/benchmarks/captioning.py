"""Measure how fast captions come, beside transformers' own pipeline with the same captioner.

    python recipes/benchmarks/captioning.py                                     # 1,000 emoji scenes, as PNG files
    python recipes/benchmarks/captioning.py --folder FOLDER --model user/name   # pictures and captioner of your own

All ways take turns of 64 pictures in one run, so that what else the machine does meets them all. Seconds are those of
the clock and, behind them, of the processor. transformers 5 has no pipeline for captioners: there it is hf_distinct's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_distinct import Captioner, emoji_scenes, pipeline, shipped
from hf_distinct.data.images import picture_files
from hf_distinct.runs.arguments import clear_errors

TURN = 64
ALONE, BATCHED, OURS, READ_AHEAD = "pipeline as it is", "pipeline, batched", "caption", "caption, read ahead"


def ways(model: str, batch_size: int) -> dict[str, Callable[[list[str]], list[Any]]]:
    """Each way from paths to captions."""
    captioner = Captioner(model)
    plain: Any = pipeline("image-to-text", model=model, device=captioner.device)

    def by_pipeline(paths: list[str], size: int) -> list[str]:
        return [found[0]["generated_text"].strip() for found in plain(paths, batch_size=size)]

    return {
        ALONE: lambda paths: by_pipeline(paths, 1),
        BATCHED: lambda paths: by_pipeline(paths, batch_size),
        OURS: lambda paths: captioner(paths, batch_size=batch_size),
        READ_AHEAD: lambda paths: captioner(paths, batch_size=batch_size, num_workers=1),
    }


def seconds() -> tuple[float, float]:
    """Those of the clock, and those of the processor over all threads and ended children."""
    now = os.times()
    return now.elapsed, sum(now[:4])


def benchmark(paths: list[str], model: str, batch_size: int) -> None:
    """Print a line for each way, and what the others take beside `caption`."""
    works = ways(model, batch_size)
    for work in works.values():  # the first call is slower
        work(paths[:batch_size])
    taken = {way: (0.0, 0.0) for way in works}
    captions: dict[str, list[str]] = {way: [] for way in works}
    for start in range(0, len(paths), TURN):
        for way, work in works.items():
            wall, cpu = seconds()
            captions[way] += work(paths[start : start + TURN])
            ended_wall, ended_cpu = seconds()
            taken[way] = (taken[way][0] + ended_wall - wall, taken[way][1] + ended_cpu - cpu)
    print(f"{len(paths)} pictures, batches of {batch_size}")
    for way, (wall, cpu) in taken.items():
        others = sum(a != b for a, b in zip(captions[way], captions[OURS], strict=True))
        print(
            f"  {way:>19}: {wall:7.2f} s ({cpu:.2f} s of processor), {wall / taken[OURS][0]:.2f} times as long as "
            f"caption ({cpu / taken[OURS][1]:.2f} of processor); other captions: {others}"
        )


def main() -> None:
    """Caption by each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="pictures; none: emoji scenes")
    parser.add_argument("--model", default=shipped("captioner"), help="none: the shipped captioner")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the pipeline would rather be given a dataset
    with tempfile.TemporaryDirectory() as place:
        if arguments.folder is None:
            for number, picture in enumerate(emoji_scenes("test", arguments.rows)["image"]):
                picture.save(Path(place) / f"{number:05d}.png")
        paths = [str(path) for path in picture_files(arguments.folder or place)[: arguments.rows]]
        benchmark(paths, arguments.model, arguments.batch_size)


if __name__ == "__main__":
    with clear_errors():
        main()
