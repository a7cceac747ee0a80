"""Count the messages of a training step between processes, beside what the settings say that it sends.

    python recipes/benchmarks/messages.py                          # 2 and 4 processes that exchange by gloo
    python recipes/benchmarks/messages.py --processes 8 --batch 16

Each number of processes trains the shipped captioner with DistributedDataParallel; the messages of its third step are
counted where torch hands them to the network. Prints for one process:

    all_gathers   number of calls, and how many of them exchange only the number of rows that the next one sends
    pools         bytes that it sends for the pools of the contrastive reward, counted and by `pool_bytes`
    figures       bytes that it sends for the figures of the log, counted and by `figure_bytes`
    reduced       bytes of the gradients of captioner and discriminator, and 4 bytes a weight of both

It receives the first two from every process. Counts are the same on a GPU, where NCCL exchanges them.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small
from hf_distinct.text.problems import refuse

COUNTED_STEP = 3
FLOAT, INTEGER = 4, 8


@dataclass
class Settings:
    """Which steps to count."""

    processes: list[int] = field(default_factory=lambda: [2, 4], metadata={"help": "Numbers of processes."})
    batch: int = field(default=4, metadata={"help": "Number of images per step and process."})
    rollouts: int = field(default=3, metadata={"help": "Number of rollouts of each image."})
    neighbours: int = field(default=2, metadata={"help": "Number of similar images of each image in the pool."})
    greedy: bool = field(default=True, metadata={"help": "Put greedy captions into the pool."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the table."})

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible."""
        yield from too_small(self, batch=1, rollouts=2, neighbours=1)
        if min(self.processes) < 2:
            yield "--processes should be at least 2: a single process sends nothing."


class Message(NamedTuple):
    """What one process hands to a collective operation."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Its bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Messages(TorchDispatchMode):
    """Notes the messages of this process, including those of DistributedDataParallel on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Message] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            kind = func._schema.name.partition("::")[2].strip("_")
            sent = args[1 if "allgather" in kind else 0]  # an all_gather first names what it writes to
            tensors = [each for each in tree_leaves(sent) if isinstance(each, Tensor)]
            self.found += [Message(kind, tuple(each.shape), each.dtype) for each in tensors]
        return func(*args, **(kwargs or {}))


def pool_bytes(images: int, texts: int, neighbours: int, dim: int) -> int:
    """Return the bytes that a process sends for the pools in a step.

    Each text has an embedding, a digest, the digest of its image and a kind; each image, its similar images included,
    an embedding and a digest.

    Args:
        images: B, images per step and process.
        texts: B (K + G + greedy), their rollouts, reference captions and greedy captions.
        neighbours: M, similar images of each image.
        dim: d, width of the embeddings.
    """
    return texts * (dim * FLOAT + 3 * INTEGER) + images * (1 + neighbours) * (dim * FLOAT + INTEGER)


def figure_bytes(images: int, rollouts: int, references: int, rewards: int) -> int:
    """Return the bytes that a process sends for the figures of the log in a step.

    Each reference caption sends its reward, by which references are weighted; each rollout whether the scorer cuts it;
    and both send every part of the reward, and whether it applies.

    Args:
        images: B, images per step and process.
        rollouts: K, rollouts of each image.
        references: G, reference captions of each image.
        rewards: parts of the reward, with the discriminator's and the total.
    """
    return FLOAT * images * (references + rollouts + 2 * rewards * (rollouts + references))


def train(rank: int, processes: int, port: int, settings: Settings, told: Any) -> None:
    """Train a few steps in one of several processes; the first one tells its messages and what they depend on."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)

    from transformers import TrainerCallback

    from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer, emoji_scenes
    from hf_distinct.inference.pipelines import load_captioner

    messages = Messages()

    class Count(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == COUNTED_STEP - 1:
                messages.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == COUNTED_STEP:
                messages.__exit__(None, None, None)

    captioner, tokenizer, processor = load_captioner("captioner")
    scorer, images = ClipScorer("scorer"), settings.batch * processes * COUNTED_STEP
    with tempfile.TemporaryDirectory() as folder:
        config = RLCaptionConfig(
            output_dir=folder, max_steps=COUNTED_STEP, per_device_train_batch_size=settings.batch,
            num_rollouts=settings.rollouts, pool_neighbours=settings.neighbours, pool_greedy=settings.greedy,
            memory_batches=1, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=True, discriminator_pretrain_steps=0,
        )  # fmt: skip
        trainer = RLCaptionTrainer(
            captioner, config, scorer=scorer, train_dataset=emoji_scenes("train", images, 0),
            processing_class=tokenizer, image_processor=processor, callbacks=[Count()],
        )  # fmt: skip
        trainer.train()
        weights = [*captioner.parameters(), *trainer.discriminator.discriminator.parameters()]
        if rank == 0:
            rewards = len(trainer.appraiser.rewards) + bool(config.discriminator_weight) + 1
            told.put((messages.found, config.references_per_image, rewards, scorer.embed_dim,
                      sum(weight.numel() for weight in weights)))  # fmt: skip
    torch.distributed.destroy_process_group()


def count(processes: int, settings: Settings) -> dict[str, float]:
    """Count the messages of a step of the first of several processes, beside the formulas."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(train, (processes, port, settings, told), nprocs=processes)
    messages, references, rewards, dim, weights = told.get()
    gathers = [each for each in messages if each.kind == "allgather"]
    counts = [each for each in gathers if each.dtype == torch.int64 and each.shape == (1,)]
    of_pools = {torch.float32: (dim,), torch.int64: ()}  # of each row: an embedding, a digest or a kind
    pools = [each for each in gathers if each not in counts and each.shape[1:] == of_pools.get(each.dtype)]
    figures = [each for each in gathers if each.dtype == torch.float32 and each not in pools]
    reduced = [each for each in messages if each.kind == "allreduce"]
    texts = settings.batch * (settings.rollouts + references + settings.greedy)
    return {
        "all_gathers": len(gathers),
        "only counts": len(counts),
        "pools": sum(each.size for each in pools),
        "pools, formula": pool_bytes(settings.batch, texts, settings.neighbours, dim),
        "figures": sum(each.size for each in figures),
        "figures, formula": figure_bytes(settings.batch, settings.rollouts, references, rewards),
        "reduced": sum(each.size for each in reduced),
        "weights": FLOAT * weights,
    }


def main() -> None:
    """Count, show."""
    (settings,) = parse_settings(Settings, description=__doc__)
    rows = {f"{processes} processes": count(processes, settings) for processes in settings.processes}
    print(format_table(rows, digits=0))
    if settings.output:
        Path(settings.output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    with clear_errors():
        main()
