"""Measure what memory and time the contrastive reward takes as processes are added.

    python recipes/benchmarks/contrast.py                                # 64 images a process; 1, 8 and 64 processes
    python recipes/benchmarks/contrast.py --processes 64 --memory_batches 0 10
    python recipes/benchmarks/contrast.py --block 1000000000000          # all similarities at once

Each row is one call of the reward, in a process of its own, on a GPU if there is one. The pools have the size that
they have with that many processes and remembered batches, filled with random embeddings:

    pool       MiB, the embeddings of the pools, on each process
    peak       MiB, the most that the call held besides
    seconds    of the call
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_distinct.reporting import format_table
from hf_distinct.rewards import ContrastiveReward, ImagePool, RewardBatch, TextKind, TextPool, contrastive
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small
from hf_distinct.text.problems import refuse
from hf_distinct.training.metering import forget_peak, peak_of_process

MIB = 2**20


@dataclass
class Settings:
    """What is measured."""

    images: int = field(default=64, metadata={"help": "Number of images per process."})
    rollouts: int = field(default=5, metadata={"help": "Number of rollouts per image."})
    references: int = field(default=5, metadata={"help": "Number of reference captions per image."})
    neighbours: int = field(default=2, metadata={"help": "Number of mined images per image."})
    dim: int = field(default=512, metadata={"help": "Width of the embeddings."})
    processes: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "Numbers of processes."})
    memory_batches: list[int] = field(default_factory=lambda: [0], metadata={"help": "Numbers of remembered batches."})
    block: int = field(
        default=contrastive.BLOCK, metadata={"help": "Number of similarities that are computed at a time."}
    )

    def __post_init__(self) -> None:
        numbers = ("images", "rollouts", "references", "dim", "block")
        refuse(too_small(self, **dict.fromkeys(numbers, 1), neighbours=0))


def measure(settings: Settings, processes: int, memory_batches: int) -> dict[str, float]:
    """Reward the captions of one process."""
    contrastive.BLOCK = settings.block
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of_all = processes * (1 + memory_batches)
    captions = settings.images * (settings.rollouts + settings.references)
    texts = torch.randn(of_all * captions, settings.dim, device=device)
    images = torch.randn(of_all * settings.images * (1 + settings.neighbours), settings.dim, device=device)
    for pool in (texts, images):
        pool /= pool.norm(dim=-1, keepdim=True)
    owner = torch.arange(captions, device=device) % settings.images
    empty: list[Any] = [""] * captions
    ids = torch.arange(len(texts), device=device)
    batch = RewardBatch(
        captions=empty, references=empty, text_embeds=texts[:captions], image_embeds=images[owner],
        text_ids=ids[:captions], image_ids=owner,
        text_pool=TextPool(texts, ids, ids % settings.images, torch.full_like(ids, int(TextKind.ROLLOUT))),
        image_pool=ImagePool(images, torch.arange(len(images), device=device)), logit_scale=100.0,
    )  # fmt: skip
    reward = ContrastiveReward()
    forget_peak()
    before, started = peak_of_process(device), time.perf_counter()
    float(reward(batch).sum())
    seconds = time.perf_counter() - started
    return {
        "pool": (texts.nbytes + images.nbytes) / MIB,
        "peak": (peak_of_process(device) - before) * 1024,
        "seconds": seconds,
    }


def main() -> None:
    """Measure and show."""
    (settings,) = parse_settings(Settings, description=__doc__)
    rows = {}
    for memory in settings.memory_batches:
        for processes in settings.processes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                name = f"{processes} processes, {memory} remembered batches"
                rows[name] = process.submit(measure, settings, processes, memory).result()
    print(format_table(rows, digits=1))


if __name__ == "__main__":
    with clear_errors():
        main()
