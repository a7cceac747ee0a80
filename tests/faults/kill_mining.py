"""What test_kill_mining.py starts: embed and mine, killed at random moments, until ten kills were survived.

python kill_mining.py DATASET SCORER FOLDER SEED

Everything is imported once, here, and each run is a fork of this process: what is killed is a run, not Python's start.
Writes FOLDER/report.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars, load_from_disk

from hf_distinct.data import embedding_cache, embeddings, mining  # noqa: F401  all that a run needs, before the forks
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.mining import MiningSettings, find_neighbours
from hf_distinct.scorer import ClipScorer

KILLS = 10


def embed_and_mine(dataset: str, scorer: str, cache: Path) -> None:
    embeddings.PART_ROWS[torch.float16] = mining.PART_ROWS = 16
    embedded, found = embed_dataset(load_from_disk(dataset), ClipScorer(scorer), cache, batch_size=8)
    for via in ("images", "captions"):
        find_neighbours(embedded, found, MiningSettings(3, first_rank=2, via=via))
    find_neighbours(embedded, found, MiningSettings(3, search="ivf", min_recall=0.5))


def content(cache: Path) -> dict[str, str]:
    """Digest of every file."""
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    return {str(path.relative_to(cache)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def phase(cache: Path) -> str:
    """How far a run had come."""
    if not cache.exists() or not any(cache.iterdir()):
        return "before the first part"
    if not list(cache.glob("embeddings-*/manifest.json")):
        return "embedding"
    return f"mining, {len(list(cache.glob('embeddings-*/neighbours-*.safetensors')))} of 3 done"


def start(dataset: str, scorer: str, cache: Path) -> tuple[int, int]:
    """Fork a run; return its number, and a pipe that it writes a byte to whenever a file gets its final name."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading

    def counted(move: Callable[..., None]) -> Callable[..., None]:
        def moved(*arguments: Any, **settings: Any) -> None:
            move(*arguments, **settings)
            os.write(writing, b".")

        return moved

    os.replace, os.rename = counted(os.replace), counted(os.rename)
    code = 1
    try:
        embed_and_mine(dataset, scorer, cache)
        code = 0
    finally:
        os._exit(code)


def finish(child: int, reading: int) -> int:
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    dataset, scorer, folder, seed = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    disable_progress_bars()
    generator = random.Random(seed)
    child, reading = start(dataset, scorer, folder / "undisturbed")
    files = 0
    while os.read(reading, 1):
        files += 1
    assert finish(child, reading) == 0
    undisturbed = content(folder / "undisturbed")

    cache, killed, resumed = folder / "killed", [], []
    last = False
    while not last:
        last = len(killed) == KILLS
        child, reading = start(dataset, scorer, cache)
        if not last:
            # After so many files, and then somewhere within the next: about once through in ten kills.
            for _ in range(generator.randint(0, 2 * files // KILLS)):
                os.read(reading, 1)
            time.sleep(generator.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
        code = finish(child, reading)
        if code == -signal.SIGKILL:
            killed.append(phase(cache))
            continue
        assert code == 0
        resumed.append(content(cache))
        shutil.rmtree(cache)
    report = {"files": sorted(undisturbed), "killed": killed, "same": [found == undisturbed for found in resumed]}
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
