"""Estimate how long a large training takes, from a report of a benchmark and from measurements of a minute here.

It needs a checkout, whose benchmark writes the report:

    python recipes/benchmarks/step.py --size base --rollouts sample --output base.json
    python recipes/estimate_cost.py --report base.json
    python recipes/estimate_cost.py --report base.json --images 113287 --gpus 8 --sustained_tflops 200

The recipe prints hours for each number of images and GPUs. It estimates a step of B images on each of G GPUs as

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
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_distinct.data.images import decode_image, to_pixel_values
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings

PASSES = 4  # of the whole captions, in decoder passes: forward, and backward at the cost of two; and the encoder
BYTES_OF_EMBEDDINGS = 2 * 512 * (1 + 5)  # of an image and its five captions, float16
SECONDS_OF_A_COMPARISON = 342.7 * 2 / 118_287**2  # on one core


@dataclass
class Settings:
    """Which trainings to estimate, and what to assume of the GPUs."""

    report: str = field(
        metadata={"help": "Report of benchmarks/step.py --output, with sampled rollouts, from which to estimate."}
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


def estimate(settings: Settings, cost: dict[str, float], images: int, gpus: int) -> dict[str, float]:
    """Estimate the hours of each part of a training, and of the preparations."""
    s, hours = settings, 1 / 3600
    steps = s.epochs * images / (s.batch * gpus)
    exchange = 2 * 4 * cost["parameters"] / (s.bandwidth * 1e9) if gpus > 1 else 0.0
    parts = {
        "arithmetic": steps * s.batch * cost["tflop"] / s.sustained_tflops * hours,
        "host": steps * (s.tokens + PASSES) * cost["host"] * hours,
        "exchange": steps * exchange * hours,
    }
    decoding = s.epochs * images * cost["decoding"] / (s.workers * gpus) * hours
    return {
        **parts,
        "decoding": decoding,
        "training": max(sum(parts.values()), decoding),
        "decoding for CLIP": decoding / s.epochs,
        "mining all pairs": images**2 * SECONDS_OF_A_COMPARISON / s.workers * hours,
        "embeddings, GiB": images * BYTES_OF_EMBEDDINGS / 2**30,
    }


def main() -> None:
    """Measure, estimate, print."""
    (settings,) = parse_settings(Settings, description=__doc__)
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
    print(f"TFLOP an image: {cost['tflop']:.3f}; parameters: {cost['parameters'] / 1e6:.0f} million")
    print(f"host, ms a token: {1000 * cost['host']:.1f}; decoding, ms a picture: {1000 * cost['decoding']:.1f}\n")
    rows = {
        f"{images} images, {gpus} GPUs": estimate(settings, cost, images, gpus)
        for images in settings.images
        for gpus in settings.gpus
    }
    print(f"hours\n{format_table(rows)}")


if __name__ == "__main__":
    with clear_errors():
        main()
