"""What test_nodes.py runs in two processes: reading, embedding and mining, on one node or on two with a disk each."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from accelerate import Accelerator
from datasets import config, load_from_disk

from hf_distinct.data import embed_dataset, ensure_splits, load_captions
from hf_distinct.data.mining import mine_neighbours
from hf_distinct.distributed.nodes import once_per_node
from hf_distinct.scorer import ClipScorer


def main(rank: str, captions: str, dataset: str, scorer: str, cache: str, told: str) -> None:
    """Write to ``told`` what this process read, embedded and mined."""
    accelerator = Accelerator(cpu=True)
    config.HF_DATASETS_CACHE = Path(cache)
    reads, embeds = [], []

    def read():
        reads.append(os.getpid())
        return ensure_splits(load_captions(captions))

    class Counting(ClipScorer):
        def encode_images(self, pixels):
            embeds.append(len(pixels))
            return super().encode_images(pixels)

    splits = once_per_node(read)
    rows, embeddings = embed_dataset(load_from_disk(dataset), Counting(scorer), cache, batch_size=8)
    rows = mine_neighbours(rows, embeddings, 2)
    error = ""
    try:
        once_per_node(lambda: load_captions("nowhere.json"))
    except FileNotFoundError as raised:
        error = str(raised)
    found = {
        "reads": len(reads), "embeds": sum(embeds), "error": error, "neighbours": rows["neighbours"][:],
        "ids": {split: part["image_id"][:] for split, part in splits.items()},
        "sum": float(embeddings.caption_embeds.sum()),
        "mapped": bool(splits["train"].cache_files),
    }
    Path(told, f"{rank}.json").write_text(json.dumps(found))
    accelerator.wait_for_everyone()  # process 0 hosts the store


if __name__ == "__main__":
    main(*sys.argv[1:])
