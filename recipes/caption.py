"""Caption a folder of pictures.

    python recipes/caption.py FOLDER --model outputs/quickstart
    python recipes/caption.py FOLDER --model user/name --num_samples 10 --rerank_with ViT-B-32:openai

Writes OUT/captions.jsonl, a line for each picture in the order of their names, and OUT/captions.html to look at.
Pictures that cannot be read are left out and named.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from hf_distinct.arguments import clear_errors, parse_settings
from hf_distinct.captioning import Captioner, open_picture
from hf_distinct.data.images import ImageError
from hf_distinct.reporting.caption_sheet import write_caption_sheet

logger = logging.getLogger("caption")


@dataclass
class Settings:
    """Which pictures, by which captioner."""

    folder: str = field(metadata={"help": "Pictures; those in folders below it too."})
    model: str = field(metadata={"help": "The captioner: a folder, or a Hub id."})
    output_dir: str = field(default="outputs/captions", metadata={"help": "Where captions.jsonl and .html go."})
    num_samples: int = field(default=0, metadata={"help": "Samples of each picture; 0: the one best caption."})
    rerank_with: str | None = field(default=None, metadata={"help": "The CLIP that chooses among the samples."})
    batch_size: int = field(default=32, metadata={"help": "Pictures at a time."})
    seed: int = field(default=0, metadata={"help": "Of the samples."})


def pictures_in(folder: Path) -> list[Path]:
    """The files that PIL may be able to read, by name."""
    Image.init()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in Image.EXTENSION and path.is_file())
    if not found:
        raise ValueError(f"{folder} holds no pictures")
    return found


def main() -> None:
    """Write captions and sheet."""
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-"):
        argv = ["--folder", *argv]
    (settings,) = parse_settings(Settings, argv=argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, output = Path(settings.folder), Path(settings.output_dir)
    paths = pictures_in(folder)
    captioner = Captioner(settings.model, settings.rerank_with)
    output.mkdir(parents=True, exist_ok=True)

    readable = []
    for path in paths:
        try:
            open_picture(path, 0)
        except ImageError as error:
            logger.warning("left out: %s", error)
        else:
            readable.append(path)
    captions = captioner(
        readable, settings.num_samples, batch_size=settings.batch_size, seed=settings.seed, progress=True
    )
    with open(output / "captions.jsonl", "w", encoding="utf-8") as lines:
        for path, said in zip(readable, captions, strict=True):
            key = "caption" if isinstance(said, str) else "captions"
            lines.write(json.dumps({"file_name": path.relative_to(folder).as_posix(), key: said}) + "\n")
    rows = [(os.path.relpath(path, output), said) for path, said in zip(readable, captions, strict=True)]
    write_caption_sheet(rows, output / "captions.html", title=f"Captions of {folder.name}")
    left_out = f" ({len(paths) - len(readable)} left out)" if len(readable) < len(paths) else ""
    print(f"{len(readable)} pictures{left_out}: {output / 'captions.jsonl'}, {output / 'captions.html'}")  # noqa: T201


if __name__ == "__main__":
    with clear_errors():
        main()
