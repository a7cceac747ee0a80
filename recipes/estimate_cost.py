"""Estimate what a large training takes before you start it: disk, memory, network, and hours.

It needs a checkout, whose benchmark writes the report for the hours:

    python recipes/estimate_cost.py --images 1000000
    python recipes/benchmarks/step.py --size base --rollouts sample --output base.json
    python recipes/estimate_cost.py --images 113287 --report base.json --gpus 8 --sustained_tflops 200

For each number of images the recipe prints the disk that each stage takes, from the formats of its files, and the
memory that a process takes, from the curves that benchmarks/growth.py measured; and whether this machine has as much.
For each number of GPUs it prints what a step sends and holds. Sizes are those of ViT-B/16 + GPT-2 and of a CLIP with
512 numbers, unless you set others.

With a report it prints hours for each number of images and GPUs. It estimates a step of B images on each of G GPUs as

    B * (operations of an image, from the report) / (operations per second of a GPU: an assumption)
    + (tokens of a caption + 4) * (host time to launch the kernels of one decoder pass: measured here)
    + 2 * (bytes of gradients) / (bandwidth between GPUs: an assumption), if G > 1

or as the time in which the workers of a GPU decode B pictures (measured here), if that is longer. The forward and
backward passes over whole captions count as four tokens. Mining compares all pairs with the workers of one GPU, at the
rate that was measured on two cores.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from benchmarks.messages import pool_bytes
from PIL import Image
from transformers import (
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_distinct.data.images import decode_image, to_pixel_values
from hf_distinct.data.mining import EXACT_COMPARISONS
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings

PASSES = 4  # of the whole captions, in decoder passes: forward, and backward at the cost of two; and the encoder
SECONDS_OF_A_COMPARISON = 342.7 * 2 / 118_287**2  # on one core
HALF, FLOAT, INTEGER = 2, 4, 8  # bytes of a number
OFFSET = 4  # bytes of an offset in an Arrow column


class Curve(NamedTuple):
    """Memory of a process, in bytes: a fixed part, and a part for each image."""

    fixed: float
    per_image: float


MEMORY = {
    "Karpathy JSON": Curve(60e6, 50),
    "embedding": Curve(10e6, 150),
    "mining": Curve(7e6, 1800),
    "first step": Curve(177e6, 370),
    "CIDEr-D reward": Curve(110e6, 60),
    "caption figures": Curve(90e6, 440),
}
"""What stages of benchmarks/growth.py take above what the process holds before: the line through 1,000 images and the
largest number that was measured."""
STEP = {"fixed": 3287 * 2**20, "image": 145.8 * 2**20, "rollout": 24.5 * 2**20}
"""Bytes of tensors in a step of ViT-B/16 + GPT-2 in float32, from benchmarks/memory.py."""
PAIR_BYTES, PAIRS = 13, 2**22
"""Of a caption and each text, or image, that it is compared with: logits, their exponentials, masks. And how many
pairs are compared at a time."""
SHARED_NGRAMS, NGRAM_BYTES = 11, 16
"""N-grams for each image that several images have, counted in Flickr8k; and bytes of a document frequency."""
PAGE_PICTURES, PICTURE_BYTES = 1000, 11_000
"""Pictures in captions.html, and a small copy of one."""
RESULT_BYTES = 33
"""Of COCO's form of results, around an id and a caption."""


@dataclass
class Settings:
    """Which trainings to estimate, and what to assume of the GPUs."""

    report: str | None = field(
        default=None,
        metadata={
            "help": "Report of benchmarks/step.py --output, with sampled rollouts, from which to estimate hours. "
            "Default: no hours."
        },
    )
    images: list[int] = field(
        default_factory=lambda: [113_287, 10_000_000], metadata={"help": "Numbers of training images."}
    )
    gpus: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "Numbers of GPUs."})
    epochs: int = field(default=3, metadata={"help": "Number of epochs."})
    batch: int = field(default=16, metadata={"help": "Number of images per step and GPU."})
    tokens: int = field(default=20, metadata={"help": "Number of tokens of the longest caption in a batch."})
    workers: int = field(default=8, metadata={"help": "Number of CPU cores per GPU that decode pictures."})
    sustained_tflops: float = field(
        default=50.0, metadata={"help": "Assumed TFLOP per second that a GPU sustains over a step."}
    )
    bandwidth: float = field(default=20.0, metadata={"help": "Assumed bandwidth between any two GPUs, in GB/s."})
    captions: int = field(default=5, metadata={"help": "Number of captions of each image."})
    characters: int = field(default=53, metadata={"help": "Mean number of characters of a caption."})
    path_characters: int = field(default=60, metadata={"help": "Mean number of characters of the path of a picture."})
    dim: int = field(default=512, metadata={"help": "Width of the CLIP's embeddings."})
    parameters: int = field(default=239_000_000, metadata={"help": "Number of parameters of the captioner."})
    encoder_states: int = field(
        default=197 * 768, metadata={"help": "Numbers that the captioner's encoder outputs for an image."}
    )
    rollouts: int = field(default=5, metadata={"help": "Number of rollouts of each image."})
    neighbours: int = field(default=2, metadata={"help": "Number of similar images of each image in the pool."})
    memory_batches: int = field(default=0, metadata={"help": "Number of earlier batches in the pool."})
    folder: str = field(default=".", metadata={"help": "Folder whose disk is compared with the estimate."})


def median_seconds(work: Callable[[], Any], times: int = 7) -> float:
    """Measure the median time of some work, after one run that does not count."""
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def host_seconds(tokens: int) -> float:
    """Measure the host time of one token of `generate`, by a decoder of twelve layers that computes almost nothing."""
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(hidden_size=48, num_hidden_layers=1, intermediate_size=48),
        GPT2Config(n_embd=48, n_layer=12, n_head=12, vocab_size=100, is_decoder=True, add_cross_attention=True),
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
    model: Any = VisionEncoderDecoderModel(config)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    hidden = torch.zeros(1, 10, 48, device=model.device)
    length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
    how = rollout_config(model, do_sample=True, num_return_sequences=5, **length)
    return median_seconds(lambda: generate_labels(model, hidden, how)) / tokens


def decoding_seconds() -> float:
    """Measure one core's time from a JPEG of 640 x 480 pixels to a captioner's input of 224 x 224."""
    ramp = torch.linspace(0, 200, 640)[None, :, None] * torch.linspace(0.2, 1, 480)[:, None, None]
    noise = torch.randint(0, 55, (480, 640, 3), generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    Image.fromarray((ramp + noise).to(torch.uint8).numpy()).save(file, "JPEG", quality=90)
    row, processor = {"bytes": file.getvalue(), "path": None}, ViTImageProcessor()
    torch.set_num_threads(1)
    return median_seconds(lambda: to_pixel_values([decode_image(row)], processor))


def arrow_bytes(settings: Settings, images: int) -> int:
    """Return the size of the Arrow file of captions, paths and ids."""
    s, id_characters = settings, len(str(images))
    captions = s.captions * (s.characters + OFFSET)
    return images * (captions + OFFSET + s.path_characters + 2 * OFFSET + id_characters + OFFSET)


def embedding_bytes(settings: Settings, images: int) -> int:
    """Return the size of the cached embeddings of images and captions, in half precision, and of their offsets."""
    return images * (1 + settings.captions) * settings.dim * HALF + (images + 1) * INTEGER


def index_bytes(settings: Settings, images: int) -> int:
    """Return the size of the index that mining searches: of all embeddings, or of cells with codes."""
    if images**2 <= EXACT_COMPARISONS:
        return images * settings.dim * FLOAT
    cells = round(2 * images**0.5)
    codes = (images + 16 * cells) * settings.dim // 8  # a cell is filled up to a multiple of 32 codes
    return cells * settings.dim * FLOAT + codes + images * INTEGER


def checkpoint_bytes(settings: Settings) -> int:
    """Return the size of a checkpoint: captioner, AdamW, and the discriminator with its Adam."""
    discriminator = (2 * settings.dim + 1) * 512 + (512 + 1) * 256 + (256 + 1) * 2
    return 3 * FLOAT * settings.parameters + 4 * FLOAT * discriminator


def disk(settings: Settings, images: int) -> dict[str, float]:
    """Estimate the disk of each stage, in bytes."""
    neighbours = images * ((INTEGER + FLOAT) * settings.neighbours + 3)
    embeddings = embedding_bytes(settings, images)
    results = images * (RESULT_BYTES + len(str(images)) + settings.characters)
    return {
        "captions": arrow_bytes(settings, images),
        "embeddings": embeddings,
        "while embedding": 2 * embeddings,
        "encoder cache": images * settings.encoder_states * HALF,
        "mining": index_bytes(settings, images) + neighbours,
        "CIDEr-D reward": images * SHARED_NGRAMS * NGRAM_BYTES,
        "checkpoint": checkpoint_bytes(settings),
        "evaluation": results + min(images, PAGE_PICTURES) * PICTURE_BYTES,
    }


def memory(images: int) -> dict[str, float]:
    """Estimate the memory of a process in each stage, in bytes."""
    return {stage: curve.fixed + curve.per_image * images for stage, curve in MEMORY.items()}


def step(settings: Settings, gpus: int) -> dict[str, float]:
    """Estimate what a step sends and holds on each of several GPUs, in bytes."""
    s = settings
    texts = s.batch * (s.rollouts + 1)
    own = pool_bytes(s.batch, texts, s.neighbours, s.dim)
    batches = gpus * (1 + s.memory_batches)  # in the pools
    pool = batches * max(texts, s.batch * (1 + s.neighbours))
    return {
        "pools sent": own if gpus > 1 else 0,
        "pools received": own * gpus if gpus > 1 else 0,
        "gradients": 2 * FLOAT * s.parameters if gpus > 1 else 0,
        "pools held": own * batches,
        "contrast": min(texts * pool, PAIRS) * PAIR_BYTES,
        "tensors": STEP["fixed"] + s.batch * (STEP["image"] + s.rollouts * STEP["rollout"]),
    }


def hours(settings: Settings, cost: dict[str, float], images: int, gpus: int) -> dict[str, float]:
    """Estimate the hours of each part of a training, and of the preparations."""
    s, an_hour = settings, 1 / 3600
    steps = s.epochs * images / (s.batch * gpus)
    exchange = 2 * 4 * cost["parameters"] / (s.bandwidth * 1e9) if gpus > 1 else 0.0
    parts = {
        "arithmetic": steps * s.batch * cost["tflop"] / s.sustained_tflops * an_hour,
        "host": steps * (s.tokens + PASSES) * cost["host"] * an_hour,
        "exchange": steps * exchange * an_hour,
    }
    decoding = s.epochs * images * cost["decoding"] / (s.workers * gpus) * an_hour
    return {
        **parts,
        "decoding": decoding,
        "training": max(sum(parts.values()), decoding),
        "decoding for CLIP": decoding / s.epochs,
        "mining all pairs": images**2 * SECONDS_OF_A_COMPARISON / s.workers * an_hour,
    }


def room(settings: Settings, images: int) -> str:
    """Say whether this machine has the disk and the memory for a number of images."""
    sizes = disk(settings, images)
    once = sum(sizes[name] for name in ("captions", "while embedding", "mining", "CIDEr-D reward", "evaluation"))
    files = once + 2 * sizes["checkpoint"]
    held = max(memory(images).values())
    free, available = shutil.disk_usage(settings.folder).free, psutil.virtual_memory().available
    enough = [f"{'enough' if there >= needed else 'NOT ENOUGH'}: {needed / 2**30:.1f} of {there / 2**30:.1f} GiB"
              for needed, there in ((files, free), (held, available))]  # fmt: skip
    return (
        f"{images:,} images here: disk {enough[0]} free (without encoder cache, with two checkpoints); memory of a "
        f"process {enough[1]} available."
    )


def show(unit: str, rows: dict[str, dict[str, float]], divisor: float = 1.0) -> None:
    """Print a table."""
    scaled = {name: {column: value / divisor for column, value in row.items()} for name, row in rows.items()}
    print(f"{unit}\n{format_table(scaled)}\n")


def main() -> None:
    """Estimate, compare with this machine; with a report, measure and estimate hours."""
    (settings,) = parse_settings(Settings, description=__doc__)
    show("disk, GiB", {f"{images} images": disk(settings, images) for images in settings.images}, 2**30)
    show("memory of a process, GiB", {f"{images} images": memory(images) for images in settings.images}, 2**30)
    show("a step on each GPU, MiB", {f"{gpus} GPUs": step(settings, gpus) for gpus in settings.gpus}, 2**20)
    for images in settings.images:
        print(room(settings, images))
    if settings.report is None:
        return
    report = json.loads(Path(settings.report).read_text())
    ways = [ways["ours"] for name, ways in report["seconds"].items() if name.startswith("sample")]
    if not ways:
        raise ValueError(f"{settings.report} has no sampled rollouts: run benchmarks/step.py --rollouts sample.")
    cost = {
        "tflop": ways[0]["tflop"] / report["settings"]["images"],
        "parameters": report["parameters"],
        "host": host_seconds(settings.tokens),
        "decoding": decoding_seconds(),
    }
    print(f"\nTFLOP an image: {cost['tflop']:.3f}; parameters: {cost['parameters'] / 1e6:.0f} million")
    print(f"host, ms a token: {1000 * cost['host']:.1f}; decoding, ms a picture: {1000 * cost['decoding']:.1f}\n")
    rows = {
        f"{images} images, {gpus} GPUs": hours(settings, cost, images, gpus)
        for images in settings.images
        for gpus in settings.gpus
    }
    show("hours", rows)


if __name__ == "__main__":
    with clear_errors():
        main()
