"""Measure the start of a run, a step and a save in this checkout beside those in another one.

    git worktree add ../before REVISION
    python recipes/benchmarks/before_and_after.py ../before

Both train the shipped captioner on the same emoji scenes, each in a process of its own, and take turns: a step and a
save of one, then of the other. Prints medians over the turns, in seconds of the clock and of the processor, and the
median of the ratio of each turn's two.

    start    from the start of Python to the begin of the first step
    step     from its batch to its new weights
    save     a checkpoint, with the removal of an older one
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
PARTS = ("start", "step", "save")
Seconds = dict[str, tuple[float, float]]
"""Of the clock and of the processor, by part."""


def train(steps: int, batch: int) -> None:
    """One run; it waits for a line before each step, and tells what the step and its save took."""
    from transformers import AutoTokenizer, TrainerCallback, VisionEncoderDecoderModel

    from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer, emoji_scenes
    from hf_distinct.inference.pipelines import load_image_processor
    from hf_distinct.scorer import shipped_or_named

    class Turns(TrainerCallback):
        """Tells the seconds since it last told."""

        last = (float(os.environ["BEGIN"]), 0.0)

        def tell(self, part: str) -> None:
            now = (time.time(), time.process_time())
            print(part, *(after - before for after, before in zip(now, self.last, strict=True)), flush=True)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not state.global_step:
                self.tell("start")
            sys.stdin.readline()
            self.last = (time.time(), time.process_time())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tell("step")
            self.last = (time.time(), time.process_time())

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tell("save")

    source = shipped_or_named("captioner")
    with tempfile.TemporaryDirectory() as folder:
        config = RLCaptionConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, num_rollouts=4, memory_batches=4,
            save_strategy="steps", save_steps=1, save_total_limit=2, logging_strategy="no", report_to="none",
            baseline="none", disable_tqdm=True, discriminator_pretrain_steps=0,
        )  # fmt: skip
        trainer = RLCaptionTrainer(
            VisionEncoderDecoderModel.from_pretrained(source), config, scorer=ClipScorer(shipped_or_named("scorer")),
            train_dataset=emoji_scenes("train", 4 * batch, seed=0), callbacks=[Turns()],
            processing_class=AutoTokenizer.from_pretrained(source), image_processor=load_image_processor(source),
        )  # fmt: skip
        trainer.train()


def start(checkout: Path, steps: int, batch: int) -> subprocess.Popen[str]:
    """Start the run of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "BEGIN": str(time.time())}
    command = [sys.executable, __file__, str(checkout), "--train", "--steps", str(steps), "--batch", str(batch)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )


def hear(run: subprocess.Popen[str], *parts: str) -> Seconds:
    """What a run tells of these parts, whatever else libraries print."""
    assert run.stdout is not None
    found: Seconds = {}
    for line in run.stdout:
        words = line.split()
        if words and words[0] in parts:
            found[words[0]] = (float(words[1]), float(words[2]))
            if words[0] == parts[-1]:
                return found
    raise ValueError(f"{run.args!r} ended early; start it alone to see why")


def measure(checkouts: list[Path], starts: int, steps: int, batch: int) -> list[list[Seconds]]:
    """What each turn took, for each checkout."""
    turns: list[list[Seconds]] = []
    for number in range(starts):
        runs = [start(checkouts[0], steps, batch)]
        begun = [hear(runs[0], "start")]  # one after the other, since they would hinder each other
        runs.append(start(checkouts[1], steps, batch))
        begun.append(hear(runs[1], "start"))
        turns.append(begun)
        for step in range(steps):
            found = []
            for run in runs:
                assert run.stdin is not None
                run.stdin.write("\n")
                run.stdin.flush()
                found.append(hear(run, "step", "save"))
            if step:  # in the first, memory is taken
                turns.append(found)
        for run in runs:
            run.wait()
        print(f"{number + 1} of {starts} pairs of runs", file=sys.stderr)
    return turns


def main() -> None:
    """Measure, and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="Another checkout.")
    parser.add_argument("--starts", type=int, default=3, help="Number of pairs of runs.")
    parser.add_argument("--steps", type=int, default=12, help="Number of steps of each run.")
    parser.add_argument("--batch", type=int, default=16, help="Number of images per step.")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        return train(given.steps, given.batch)
    turns = measure([given.before.resolve(), HERE], given.starts, given.steps, given.batch)
    print("| | before, s | CPU s | after, s | CPU s | ratio | of CPU |\n|---|---:|---:|---:|---:|---:|---:|")
    for part in PARTS:
        pairs = [(before[part], after[part]) for before, after in turns if part in before]
        clock, cpu = ([statistics.median(pair[side][unit] for pair in pairs) for side in (0, 1)] for unit in (0, 1))
        ratios = [statistics.median(after[unit] / before[unit] for before, after in pairs) for unit in (0, 1)]
        shown = (clock[0], cpu[0], clock[1], cpu[1])
        print(f"| {part} | " + " | ".join(f"{value:.2f}" for value in shown + tuple(ratios)) + " |")


if __name__ == "__main__":
    main()
