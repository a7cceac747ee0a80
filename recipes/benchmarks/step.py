"""Measure a step beside a plain one of the published structure, and beside what no step can do without.

    python recipes/benchmarks/step.py                 # the shipped captioner and CLIP on emoji scenes, 32 images
    python recipes/benchmarks/step.py --size base     # ViT-B/16 + GPT-2 and a ViT-B/32 CLIP, all random weights
    python recipes/benchmarks/step.py --size blip --images 2    # BLIP of base size: ours and the reference
    python recipes/benchmarks/step.py --rollouts sample --repetitions 30 --output sample.json

Four ways from the same batch to gradients take turns in one process, on a GPU if there is one:

    reference   images encoded anew for rollouts, greedy captions, ground truth and scoring, and once for each sample;
                separate passes; CLIP's image and text towers in every step, ground truth included, texts padded
    ours        `RLCaptionTrainer.compute_loss` with embeddings from the cache, and backward
    floor       one encoder pass, a bare `generate`, a bare forward and backward over the same tokens, and CLIP's
                text tower over the same strings
    lowered     the floor again, with our `generate_labels`, `token_logits` and `ClipScorer.encode_texts` in it

Ours draws the samples, and the others are made to draw the same, so that reference and ours have the same loss, and
both floors have the same tokens and the same loss, which is checked in every turn. Shows the median of each ratio, its
smallest and its largest value: `..._vs_reference` is how many times as many images a second we do as the reference,
`..._vs_floor` our time over the floor's, `..._floor_lowered` how many times as fast the floor becomes by our parts.
The column `tflop` counts the operations of all matrix products: the ratios as they would be if nothing else took time.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from models import base_models, blip_models, small_models
from step_ways import Bare, Lowered, RecordingPolicy, RecordingTrainer, Reference, floor, ours
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import set_seed

from hf_distinct import RLCaptionConfig, emoji_scenes
from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.training.metering import Meter, forget_peak, peak_memory

WAYS = ("ours", "reference", "floor", "lowered")
WARM_UP = 1  # turns in which memory is taken and kernels are chosen
TOLERANCE = 1e-4  # of two losses, relative to the mean log-probability of a token, as large as they get


@dataclass
class Settings:
    """What is measured."""

    size: Literal["small", "base", "blip"] = field(default="small", metadata={"help": "The captioner and its CLIP."})
    rollouts: Literal["beam", "sample", "both"] = field(
        default="both",
        metadata={"help": "How captions are written: the best of five beams, or five samples, of each image."},
    )
    repetitions: int = field(default=10, metadata={"help": "Number of times that each way is measured."})
    images: int | None = field(
        default=None, metadata={"help": "Number of images in a batch. Default: 32, 8 with the size base, 4 with blip."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for all that was measured."})


def make_trainer(
    models: tuple[Any, ...], rollouts: str, images: int, folder: Path, batches: int = 3, bf16: bool = False
) -> RecordingTrainer:
    """With the paper's settings but for the mined neighbours, which both would take from the cache."""
    captioner, tokenizer, image_processor, scorer = models
    args = RLCaptionConfig(
        output_dir=str(folder),
        bf16=bf16,
        per_device_train_batch_size=images,
        rollouts=rollouts,  # type: ignore[arg-type]
        num_rollouts=1 if rollouts == "beam" else 5,
        pool_greedy=True,
        wtf_policy="raw",
        max_reference_length=24,
    )
    trainer = RecordingTrainer(
        copy.deepcopy(captioner), args, scorer=scorer, train_dataset=emoji_scenes("train", batches * images),
        processing_class=tokenizer, image_processor=image_processor,
    )  # fmt: skip
    known = (args, trainer.accelerator, tokenizer, trainer.compute_loss_context_manager)
    trainer.policy = RecordingPolicy(*known)
    trainer.stock = captioner.to(trainer.args.device).eval()
    if bf16:  # as in a training: the model's own forward turns to half precision
        trainer.model = trainer.accelerator.prepare_model(trainer.model)
    return trainer


def batches(trainer: RecordingTrainer) -> list[dict[str, Any]]:
    """The batches of an epoch, on the device, with the pixels that CLIP would see."""
    transform = trainer.scorer.transform
    pictures = {row["image_id"]: transform(row["image"]) for row in emoji_scenes("train", len(trainer.train_dataset))}
    found = []
    for batch in trainer.get_train_dataloader():
        batch["clip_pixels"] = torch.stack([pictures[image_id] for image_id in batch["columns"]["image_id"]])
        found.append(trainer._prepare_inputs(batch))
    return found


def take_turns(
    trainer: RecordingTrainer, repetitions: int, names: Sequence[str] = WAYS, tolerance: float = TOLERANCE
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each way's phases and its peak memory, turn by turn.

    Args:
        trainer: made by `make_trainer`.
        repetitions: turns that are measured.
        names: the ways; ours must come first, for the others write its samples.
        tolerance: how much losses that must be equal may differ.

    Raises:
        ValueError: two losses that must be equal differ.
    """
    device = trainer.args.device
    reference, bare, lowered = Reference(trainer), Meter(device), Meter(device)
    ways: dict[str, tuple[Meter, Callable[..., Tensor]]] = {
        "ours": (trainer.meter, partial(ours, trainer)),
        "reference": (reference.meter, reference),
        "floor": (bare, partial(floor, Bare(trainer), bare)),
        "lowered": (lowered, partial(floor, Lowered(trainer), lowered)),
    }
    ways = {name: ways[name] for name in names}
    trainer.model.eval()
    data = batches(trainer)
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    tflop: dict[str, float] = {}
    for turn in range(-WARM_UP, repetitions):
        found: dict[str, float] = {}
        for way, (meter, step) in ways.items():
            trainer.model.zero_grad()
            trainer.stock.zero_grad()
            forget_peak()
            set_seed(turn + WARM_UP)
            counter, half = operations_counter(), trainer.accelerator.autocast()  # ours asks for it by itself
            with counter if turn < 0 else nullcontext(), nullcontext() if way == "ours" else half:
                found[way] = float(step(data[turn % len(data)]).detach())
            measured = meter.flush(trainer.accelerator)
            if turn < 0:
                tflop[way] = counter.get_total_flops() / 1e12
                continue
            times = {name[5:]: value for name, value in measured.items() if name.startswith("time/")}
            peak = peak_memory(trainer.accelerator)
            turns[way].append({**times, "tflop": tflop[way], "peak_gib": peak, "loss": found[way]})
        for one, other in (("reference", "ours"), ("floor", "lowered")):
            # A NaN is not within the tolerance, either.
            if {one, other} <= {*ways} and not abs(found[one] - found[other]) <= tolerance:
                raise ValueError(f"turn {turn}: the loss of {one} is {found[one]}, of {other} {found[other]}")
    return turns


def operations_counter() -> FlopCounterMode:
    """Counts the products of oneDNN, too, which torch's counter does not know."""

    def product(hidden: Any, weight: Any, *others: Any, out_shape: Any, **settings: Any) -> int:
        return 2 * math.prod(out_shape) * int(weight[1])  # of a weight (out, in)

    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return FlopCounterMode(display=False, custom_mapping={onednn: product} if onednn else None)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the turns."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def ratios(turns: dict[str, list[dict[str, float]]], name: str) -> dict[str, list[float]]:
    """Ratio by ratio, one of each turn."""
    seconds = {way: [turn["step"] for turn in rows] for way, rows in turns.items()}

    def of(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    pairs = {"vs_reference": ("reference", "ours"), "vs_floor": ("ours", "floor")}
    pairs["floor_lowered"] = ("floor", "lowered")
    return {f"{name}_{ratio}": of(*pair) for ratio, pair in pairs.items() if {*pair} <= {*turns}}


def main() -> None:
    """Measure, show, write."""
    (settings,) = parse_settings(Settings, description=__doc__)
    images = settings.images or {"small": 32, "base": 8, "blip": 4}[settings.size]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "ratios": {},
        "spread": {},
        "seconds": {},
        "settings": {"size": settings.size, "repetitions": settings.repetitions, "images": images},
    }
    report |= {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        models = {"small": small_models, "base": base_models, "blip": blip_models}[settings.size](Path(folder))
        for rollouts in ("beam", "sample") if settings.rollouts == "both" else (settings.rollouts,):
            trainer = make_trainer(models, rollouts, images, Path(folder))
            # The floors use what only a VisionEncoderDecoderModel accepts: encoded images.
            turns = take_turns(trainer, settings.repetitions, WAYS[:2] if settings.size == "blip" else WAYS)
            table = {way: medians(rows) for way, rows in turns.items()}
            for row in table.values():
                row["images a second"] = images / row["step"]
            name = "beam" if rollouts == "beam" else f"sample{trainer.args.num_rollouts}"
            report["seconds"][name] = table
            report["parameters"] = sum(weight.numel() for weight in trainer.model.parameters())
            print(f"\n{name}, {images} images, medians of {settings.repetitions} turns\n{format_table(table)}")
            for ratio, values in ratios(turns, name).items():
                report["ratios"][ratio] = statistics.median(values)
                report["spread"][ratio] = [min(values), max(values)]
                print(f"{ratio}: {report['ratios'][ratio]:.2f} ({min(values):.2f} to {max(values):.2f})")
    if settings.output:
        Path(settings.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    with clear_errors():
        main()
