"""Measure what memory a step of training takes: a fixed part, so much an image, and so much a rollout.

    python recipes/benchmarks/memory.py                                    # the shipped captioner and CLIP
    python recipes/benchmarks/memory.py --size base --output memory.json   # ViT-B/16 + GPT-2 with a ViT-B/32 CLIP
    python recipes/benchmarks/memory.py --size base --points 8x5+bf16      # IMAGESxROLLOUTS, and settings switched on

Each point takes two steps of `RLCaptionTrainer.train` with AdamW, in a process of its own, on a GPU if there is one:

    resident   GiB of main memory, the most that the process held in the second step, with the program and with what
               the profiler of the first step left behind; not on a GPU
    tensors    GiB, the most that tensors held: on a GPU as it counts them; on a CPU the weights, the states of AdamW,
               and the most that the profiler saw beside them in the first step, up to its optimiser
    at         the operation in which that was; not on a GPU

Then the plane `fixed + image * IMAGES + rollout * IMAGES * ROLLOUTS` nearest to the points without settings, in MiB,
with the largest distance of a point from it; and what is held besides, counted in bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from models import base_models, small_models
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback

from hf_distinct import RLCaptionConfig, RLCaptionTrainer, emoji_scenes
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.training.metering import forget_peak, peak_memory

SWITCHES = ("gradient_checkpointing", "freeze_encoder", "bf16")
POINTS = {
    "small": ["4x1", "32x1", "32x5", "64x5"],
    "base": ["8x5", "12x3", "16x1", "16x5", *(f"8x5+{switch}" for switch in SWITCHES)],
}
FIGURES = ("resident", "tensors")
COCO_IMAGES, COCO_CAPTIONS = 113_287, 566_747  # of Karpathy's training split


@dataclass
class Settings:
    """What is measured."""

    size: Literal["small", "base"] = field(default="small", metadata={"help": "The captioner and its CLIP."})
    points: list[str] = field(
        default_factory=list,
        metadata={"help": f"IMAGESxROLLOUTS, with any of +{', +'.join(SWITCHES)}; none: a few of the size."},
    )
    output: str | None = field(default=None, metadata={"help": "A JSON file for all that was measured."})


class Watch(TrainerCallback):
    """Follows allocations in the first step up to its optimiser; lets peak memory begin anew before the second."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace
        self.profile: Any = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=not torch.cuda.is_available()
        )

    def on_step_begin(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        """Of either step."""
        self.profile.start() if state.global_step == 0 else forget_peak()

    def on_pre_optimizer_step(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        """After the backward pass."""
        if state.global_step == 0:
            self.profile.stop()
            self.profile.export_chrome_trace(str(self.trace))
            self.profile = None

    def peak(self) -> tuple[int, str]:
        """The most bytes above those at the beginning, and the operation in which that was."""
        events = json.loads(self.trace.read_text())["traceEvents"]
        memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
        held = np.cumsum([size for _, size in memory])
        when = memory[int(held.argmax())][0]
        running = [e for e in events if e.get("cat") == "cpu_op" and e["ts"] <= when <= e["ts"] + e["dur"]]
        name = max(running, key=lambda event: event["dur"])["name"]
        return int(held.max()), name.removeprefix("autograd::engine::evaluate_function: ")


def size_of(tree: Any) -> int:
    """Bytes of the tensors in lists and dicts, what they share counted once."""
    storages = {leaf.untyped_storage().data_ptr(): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(leaf.untyped_storage().nbytes() for leaf in storages.values())


def measure(size: str, point: str) -> dict[str, Any]:
    """Two steps with the settings of step.py's sampled rollouts, and a memory of one batch."""
    shape, *names = point.split("+")
    images, rollouts = map(int, shape.split("x"))
    switches: dict[str, Any] = dict.fromkeys(names, True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        captioner, tokenizer, processor, scorer = {"small": small_models, "base": base_models}[size](Path(folder))
        dataset, embeddings = embed_dataset(emoji_scenes("train", 2 * images), scorer, folder)
        args = RLCaptionConfig(
            output_dir=folder, per_device_train_batch_size=images, num_rollouts=rollouts, pool_greedy=True,
            wtf_policy="raw", max_reference_length=24, memory_batches=1, max_steps=2, save_strategy="no",
            disable_tqdm=True, **switches,
        )  # fmt: skip
        trainer = RLCaptionTrainer(
            captioner, args, scorer=scorer, train_dataset=dataset, embeddings=embeddings, processing_class=tokenizer,
            image_processor=processor, callbacks=[watch := Watch(Path(folder) / "trace.json")],
        )  # fmt: skip
        started = time.perf_counter()
        trainer.train()
        found: dict[str, Any] = {"seconds": time.perf_counter() - started}
        peak, optimizer, judge = peak_memory(trainer.accelerator), trainer.optimizer, trainer.discriminator
        assert optimizer is not None
        held = {
            "captioner": size_of(captioner.state_dict()),
            "its gradients": size_of(list(optimizer.state)),  # as large as the weights that it has states of
            "its AdamW": size_of(optimizer.state_dict()),
            "CLIP": size_of(scorer.model.state_dict()),
            "discriminator": size_of(judge.discriminator.state_dict()),
            "its Adam": size_of(judge.optimizer.state_dict()),
            "a batch in the memory of pools": size_of(list(trainer.appraiser.pools.memory)),
            "a cached image": embeddings.image_embeds[0].nbytes,
            "a cached caption": embeddings.caption_embeds[0].nbytes,
        }
        found |= {"images": images, "rollouts": rollouts, "held": held}
        if torch.cuda.is_available():
            return found | {"tensors": peak}
        most, at = watch.peak()
        most += sum(held[name] for name in ("captioner", "its AdamW", "CLIP", "discriminator"))
        return found | {"resident": peak, "tensors": most / 2**30, "at": at}


def plane(rows: list[dict[str, Any]], figure: str) -> dict[str, float]:
    """The plane nearest to a figure of the points, in MiB; nothing where they do not tell its numbers apart."""
    sizes = np.array([[1, row["images"], row["images"] * row["rollouts"]] for row in rows])
    values = 1024 * np.array([row[figure] for row in rows])
    if not rows or np.linalg.matrix_rank(sizes) < sizes.shape[1]:
        return {}
    numbers = np.linalg.lstsq(sizes, values, rcond=None)[0]
    distance = abs(sizes @ numbers - values).max()
    return dict(zip(("fixed", "image", "rollout", "distance"), [*numbers.tolist(), float(distance)], strict=True))


def main() -> None:
    """Measure, show, write."""
    (settings,) = parse_settings(Settings, description=__doc__)
    points = settings.points or POINTS[settings.size]
    for point in points:
        if not set(point.split("+")[1:]) <= set(SWITCHES):
            raise ValueError(f"--points {point}: the settings to switch on are {', '.join(SWITCHES)}")
    rows: dict[str, dict[str, Any]] = {}
    for point in points:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            rows[point] = process.submit(measure, settings.size, point).result()
        shown: dict[str, float] = {name: rows[point][name] for name in (*FIGURES, "seconds") if name in rows[point]}
        print(f"\n{format_table({point: shown}, digits=2)}   {rows[point].get('at', '')}", flush=True)
    plain = [row for point, row in rows.items() if "+" not in point]
    planes: dict[str, dict[str, float]] = {name: plane(plain, name) for name in FIGURES if name in rows[points[0]]}
    held = rows[points[0]]["held"]
    coco = COCO_IMAGES * held["a cached image"] + COCO_CAPTIONS * held["a cached caption"]
    if any(planes.values()):
        print(f"\n{format_table(planes, digits=1)}")
    print(f"\n{format_table({name: {'bytes': size, 'MiB': size / 2**20} for name, size in held.items()}, digits=2)}")
    print(f"cached embeddings of COCO ({COCO_IMAGES:,} images, {COCO_CAPTIONS:,} captions): {coco / 2**20:.0f} MiB")
    if settings.output:
        report = {"points": rows, "planes": planes, "coco_embeddings": coco, "settings": vars(settings)}
        Path(settings.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    with clear_errors():
        main()
