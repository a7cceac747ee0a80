"""Breaks small valid files at random and gives them to every reader: each takes them, or refuses in words.

    python tests/faults/fuzz_readers.py --inputs 20000 --seed 1

The same seed gives the same inputs. Exits 1 if anything is raised but a ValueError or an OSError that names the file.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage

from hf_distinct import ClipScorer
from hf_distinct.data import load_captions
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.coco_results import read_coco_references, read_coco_results
from hf_distinct.data.images import decode_image
from hf_distinct.data.mined import write_portable
from hf_distinct.data.neighbours import FILE, Neighbours
from hf_distinct.files import checkpoints
from hf_distinct.files.parts import read_tensors, write_tensors
from hf_distinct.hub.model_card import write_model_card
from hf_distinct.inference.pipelines import load_captioner
from hf_distinct.text.yaml_files import parse_yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
import published_forms  # noqa: E402
import tiny  # noqa: E402

JPEGS = published_forms.jpegs(4)
NAMES = [f"{row}.jpg" for row in range(4)]
TEXTS = [f"A dog, number {row}." for row in range(4)]
TOKENS = [
    b"[" * 3000, b"[" * 20 + b"]" * 20, b'{"a":' * 3000, b"9" * 5000, b"-1", b"1e400", b"NaN", b"-Infinity", b"null",
    b"true", b"[]", b"{}", b'""', b'"', b"\\ud83d", b"\\u0000", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n",
    b",", b":", b"\t", b"|", b"../", b"/etc/passwd", b"%2e%2e%2f", b"..\\", b"C:\\", b"http://127.0.0.1:9/", b"zip://",
    b"&a [*a]", b"*a", b"!!python/object:os.system", b"2024-99-99", b"x" * 200_000, b"image", b"captions", b"split",
    b"\x80\x04\x95", b"\x7f\xff\xff\xff", b"\xff" * 8, b"'descr': '|O'", b"(10000000000000,)",
]  # fmt: skip
SECONDS = 60


class SlowError(BaseException):
    """A reader that does not end."""


@dataclass
class Reader:
    """What is broken, and how it is read.

    Attributes:
        write: Writes valid files into a folder and returns those to break.
        read: Reads the folder.
        share: How many inputs it gets beside the others, if reading takes long.
    """

    write: Callable[[Path], list[Path]]
    read: Callable[[Path], Any]
    share: float = 1.0
    outcomes: Counter[str] = field(default_factory=Counter)


def of_text(name: str, text: str, read: Callable[[Path], Any] | None = None) -> Reader:
    """A text file beside the pictures that it names."""

    def write(folder: Path) -> list[Path]:
        for picture, content in zip(NAMES, JPEGS, strict=True):
            (folder / picture).write_bytes(content)
        (folder / name).write_text(text)
        return [folder / name]

    return Reader(write, lambda folder: (read or load_captions)(folder / name))


def text_beside(folder: Path) -> list[Path]:
    for picture, content, text in zip(NAMES, JPEGS, TEXTS, strict=True):
        (folder / picture).write_bytes(content)
        (folder / picture).with_suffix(".txt").write_text(text)
    return sorted(folder.glob("*.txt"))


def parquet(folder: Path) -> list[Path]:
    Dataset.from_dict({"image": JPEGS, "captions": TEXTS, "image_id": NAMES}).to_parquet(str(folder / "a.parquet"))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: '*.parquet'\n---\n")
    return [folder / "a.parquet", folder / "README.md"]


def saved(folder: Path) -> list[Path]:
    Dataset.from_dict({"image": JPEGS, "captions": TEXTS}).save_to_disk(str(folder))
    return sorted(each for each in folder.iterdir() if each.is_file())


def shards(folder: Path) -> list[Path]:
    return sorted(Path(published_forms.webdataset(folder, JPEGS, [[each] for each in TEXTS])[0]).rglob("*.tar"))


def embeddings(folder: Path) -> list[Path]:
    vectors = torch.eye(4)
    CaptionEmbeddings(vectors, vectors, torch.arange(5)).save(folder)
    return sorted(folder.glob("*.npy"))


def tensors(folder: Path) -> list[Path]:
    write_tensors(folder / "part.safetensors", {"rows": torch.arange(4)}, {"about": "{}"})
    return [folder / "part.safetensors"]


def mined(folder: Path) -> list[Path]:
    rows, rejected = np.array([[1], [0]]), np.zeros((2, 3), bool)
    found = Neighbours(rows, np.ones((2, 1), np.float32), rejected, 1, {}, "embeddings-a")
    found.save(folder / FILE)
    (folder / "embeddings-a").mkdir()
    embeddings(folder / "embeddings-a")
    about = {"portable_name": "embeddings-b", "scorer": "s", "fingerprint": "f", "failures": {"1": "torn"}}
    (folder / "embeddings-a" / "manifest.json").write_text(json.dumps(about))
    statistics = {"images": 2, "R@1 of people's captions": 0.5, "gallery": 2, "ranks taken": [1, 1]}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return [folder / FILE, folder / "embeddings-a" / "manifest.json", folder / "statistics.json"]


def portable(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as target:
        write_portable(folder, Path(target))


def pictures(folder: Path) -> list[Path]:
    image = PILImage.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3))
    for ending in ("png", "jpg", "gif", "webp", "bmp", "tiff"):
        image.save(folder / f"a.{ending}")
    return sorted(folder.glob("a.*"))


def decode_all(folder: Path) -> None:
    for file in sorted(folder.glob("a.*")):
        decode_image({"path": str(file), "bytes": None})


def models(part: str) -> Callable[[Path], list[Path]]:
    """A small captioner or scorer."""

    def write(folder: Path) -> list[Path]:
        shutil.copytree(_models() / part, folder, dirs_exist_ok=True)
        return sorted(each for each in folder.iterdir() if each.is_file())

    return write


@functools.cache
def _models() -> Path:
    """The small models, made once; they stay until the process ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return tiny.build_models(Path(folder.name))


def checkpoint(folder: Path) -> list[Path]:
    state = folder / "checkpoint-1"
    state.mkdir()
    torch.save({"step": torch.arange(3)}, state / "rl_state.pt")
    write_tensors(state / "model.safetensors", {"rows": torch.arange(4)})
    checkpoints.seal(state, 1)
    return sorted(state.iterdir())


def card(folder: Path) -> list[Path]:
    """A card that a person has edited."""
    write_model_card(folder, model_name="cap", data="pictures")
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(text.replace("---\n", "---\nlanguage: [de, en]\n", 1) + "\nA word of mine.\n")
    return [folder / "README.md"]


def write_again(folder: Path) -> None:
    """Merge a new card into the one that stands there, and throw away what becomes of it."""
    with tempfile.TemporaryDirectory() as target:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        write_model_card(target, model_name="cap", data="pictures")


def rows(**more: Any) -> list[dict[str, Any]]:
    return [
        {"image": name, "caption": text} | more for name, text in zip(NAMES, TEXTS, strict=True)
    ]


def readers() -> dict[str, Reader]:
    """Every reader by its name."""
    karpathy = [
        {"filename": name, "imgid": row, "split": split, "sentences": [{"raw": TEXTS[row]}]}
        for row, (name, split) in enumerate(zip(NAMES, ("train", "train", "val", "test"), strict=True))
    ]
    annotations = [{"id": row, "image_id": row, "caption": text} for row, text in enumerate(TEXTS)]
    coco = {"images": [{"id": row, "file_name": each} for row, each in enumerate(NAMES)], "annotations": annotations}
    lines = "".join(json.dumps({"file_name": row["image"], "captions": [row["caption"]]}) + "\n" for row in rows(n=1))
    pairs = list(zip(NAMES, TEXTS, strict=True))
    results = [{"image_id": row, "caption": text} for row, text in enumerate(TEXTS)]
    settings = "dataset: captions.json\nmax_steps: 3\nreward: [cider, similarity]\nlearning_rate: 1.0e-5\n"
    return {
        "BLIP's list": of_text("list.json", json.dumps(rows(n=1.5))),
        "JSON by picture": of_text("by_name.json", json.dumps(dict(pairs))),
        "Karpathy's JSON": of_text("dataset_flickr8k.json", json.dumps({"images": karpathy})),
        "COCO's JSON": of_text("captions_train2017.json", json.dumps(coco)),
        "JSONL": of_text("list.jsonl", lines),
        "metadata.jsonl": of_text("metadata.jsonl", lines, lambda file: load_captions(file.parent)),
        "CSV": of_text("list.csv", "image,caption,n\n" + "".join(f'{a},"{b}",7\n' for a, b in pairs)),
        "TSV": of_text("list.tsv", "image\tcaption\n" + "".join(f"{a}\t{b}\n" for a, b in pairs)),
        "token file": of_text("a.token.txt", "".join(f"{a}#0\t{b}\n" for a, b in pairs)),
        "text beside pictures": Reader(text_beside, load_captions, 0.3),
        "parquet": Reader(parquet, lambda folder: load_captions(folder / "a.parquet"), 0.3),
        "parquet folder": Reader(parquet, load_captions, 0.3),
        "save_to_disk": Reader(saved, load_captions),
        "shards": Reader(shards, load_captions, 0.1),
        "embeddings (.npy)": Reader(embeddings, CaptionEmbeddings.load),
        "safetensors": Reader(tensors, lambda folder: read_tensors(folder / "part.safetensors")),
        "mined folder": Reader(mined, portable),
        "COCO results": of_text("results.json", json.dumps(results), read_coco_results),
        "COCO references": of_text("references.json", json.dumps(coco), read_coco_references),
        "YAML settings": of_text(
            "a.yaml", settings, lambda file: parse_yaml(file.read_text(errors="surrogateescape"), str(file))
        ),
        "pictures": Reader(pictures, decode_all),
        "captioner": Reader(models("captioner"), load_captioner, 0.1),
        "scorer": Reader(models("scorer"), ClipScorer, 0.1),
        "checkpoint": Reader(checkpoint, lambda folder: checkpoints.choose(str(folder / "checkpoint-1"), folder)),
        "card": Reader(card, write_again, 0.1),
    }


def broken(content: bytes, chance: random.Random) -> bytes:
    """Return the content with one to three things wrong."""
    for _ in range(chance.randint(1, 3)):
        at, other = (chance.randrange(len(content) + 1) for _ in range(2))
        token = chance.choice(TOKENS)
        words = list(re.finditer(rb'"[^"]*"|\w+', content)) or [re.match(b"", content)]
        word = chance.choice(words)
        assert word is not None
        flipped = bytearray(content)
        if content:
            flipped[at - 1] ^= 1 << chance.randrange(8)
        length = chance.randint(1, 64)
        content = chance.choice([
            bytes(flipped), content[:at], content[:at] + token + content[at:], content[:at] + content[at + length:],
            content[:at] + content[other:other + length] + content[at:], content[:at] + content[other:],
            content[:word.start()] + token + content[word.end():],
            content[:word.start()] + b'"' + token + b'"' + content[word.end():],
        ])  # fmt: skip
    return content


def try_one(reader: Reader, folder: Path, files: list[Path], chance: random.Random) -> str | None:
    """Break a file, read, and put it back; return a traceback that nobody should see."""
    file = chance.choice(files)
    whole = file.read_bytes()
    file.write_bytes(broken(whole, chance))
    signal.alarm(SECONDS)
    try:
        with open(os.devnull, "w") as nothing, redirect_stderr(nothing):
            reader.read(folder)
        outcome = "accepted"
    except (ValueError, OSError) as error:
        named = file.name in str(error) or str(folder) in str(error)
        outcome = "refused" if named else "bare"
        if not named:
            return traceback.format_exc()
    except BaseException:  # MemoryError, RecursionError, SlowError, whatever
        outcome = "bare"
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        file.write_bytes(whole)
        reader.outcomes[outcome] += 1
    return None


def fuzz(inputs: int, seed: int, only: str = "") -> tuple[dict[str, Reader], list[str]]:
    """Give every reader its share of the inputs; return them and the tracebacks."""
    def slow(*_: Any) -> None:
        raise SlowError(f"more than {SECONDS} seconds")

    signal.signal(signal.SIGALRM, slow)
    datasets.disable_progress_bars()
    chosen = {name: reader for name, reader in readers().items() if only in name}
    tracebacks, shares = [], sum(reader.share for reader in chosen.values())
    cache = datasets.config.HF_DATASETS_CACHE
    for name, reader in chosen.items():
        with tempfile.TemporaryDirectory(prefix="fuzz-") as work:
            datasets.config.HF_DATASETS_CACHE = f"{work}-cache"
            folder = Path(work) / "given"
            folder.mkdir()
            files, chance = reader.write(folder), random.Random(f"{seed} {name}")
            reader.read(folder)  # as it is, it is valid
            for number in range(math.ceil(inputs * reader.share / shares)):
                if found := try_one(reader, folder, files, chance):
                    tracebacks.append(f"{name}, input {number}:\n{found}")
                if number % 100 == 99:
                    shutil.rmtree(f"{work}-cache", ignore_errors=True)
            shutil.rmtree(f"{work}-cache", ignore_errors=True)
    datasets.config.HF_DATASETS_CACHE = cache
    return chosen, tracebacks


def main() -> None:
    """Print the table, and each traceback once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose name holds this")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found, tracebacks = fuzz(given.inputs, given.seed, given.only)
    for each in {text.rstrip().rpartition("\n  File")[2]: text for text in tracebacks}.values():
        sys.stdout.write(each[-3000:] + "\n")
    sys.stdout.write("| reader | inputs | accepted | refused in words | bare tracebacks |\n|---|---|---|---|---|\n")
    for name, reader in found.items():
        counts = [reader.outcomes[each] for each in ("accepted", "refused", "bare")]
        sys.stdout.write(f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} |\n")
    sys.exit(1 if tracebacks else 0)


if __name__ == "__main__":
    main()
