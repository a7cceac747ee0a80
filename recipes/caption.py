"""Caption a folder of pictures.

    python recipes/caption.py FOLDER --model outputs/quickstart
    python recipes/caption.py FOLDER --model user/name --num_samples 10 --rerank_with ViT-B-32:openai

Writes OUT/captions.jsonl, a line for each picture in the order of their names, and OUT/captions.html to look at.
Pictures that cannot be read are named and left out.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from hf_distinct.arguments import clear_errors, parse_settings
from hf_distinct.captioning import Captioner
from hf_distinct.data.images import ImageError, picture_files
from hf_distinct.reporting.caption_sheet import write_caption_sheet
from hf_distinct.scorer import load_clip, shipped

logger = logging.getLogger("caption")


@dataclass
class Settings:
    """Which pictures, by which captioner."""

    folder: str = field(metadata={"help": "Pictures; those in folders below it too."})
    model: str | None = field(
        default=None, metadata={"help": "The captioner: a folder, or a Hub id; none: the shipped one."}
    )
    output_dir: str = field(default="outputs/captions", metadata={"help": "Where captions.jsonl and .html go."})
    num_samples: int = field(default=0, metadata={"help": "Samples of each picture; 0: the one best caption."})
    rerank_with: str | None = field(
        default=None,
        metadata={"help": "The CLIP that chooses among samples: NAME:TAG, a folder, or a shipped one's name."},
    )
    guidance: float = field(
        default=1.0,
        metadata={"help": "Above 1: says more of the picture (1.5 to 3), if taught by warm_up.py --drop_images 0.5."},
    )
    batch_size: int = field(default=32, metadata={"help": "Pictures at a time."})
    num_workers: int = field(
        default=min(8, os.cpu_count() or 1), metadata={"help": "Processes that read pictures beside the captioner."}
    )
    seed: int = field(default=0, metadata={"help": "Of the samples."})


def parse() -> Settings:
    """The settings; what comes first is the folder, unless it is a YAML file."""
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-") and Path(argv[0]).suffix not in (".yaml", ".yml"):
        argv = ["--folder", *argv]
    return parse_settings(Settings, argv=argv, description=__doc__)[0]


def main() -> None:
    """Write captions and sheet."""
    settings = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, output = Path(settings.folder), Path(settings.output_dir)
    pictures = picture_files(folder)
    scorer = load_clip(settings.rerank_with) if settings.rerank_with else None
    captioner = Captioner(settings.model or shipped("captioner"), scorer)
    stream = captioner.stream(
        pictures,
        settings.num_samples,
        batch_size=settings.batch_size,
        guidance=settings.guidance,
        seed=settings.seed,
        num_workers=settings.num_workers,
        progress=True,
    )
    output.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str | list[str]]] = []
    with open(output / "captions.jsonl", "w", encoding="utf-8") as lines, logging_redirect_tqdm():
        for path, said in zip(pictures, stream, strict=True):
            if isinstance(said, ImageError):
                logger.warning("left out: %s", said)
                continue
            key = "caption" if isinstance(said, str) else "captions"
            lines.write(json.dumps({"file_name": path.relative_to(folder).as_posix(), key: said}) + "\n")
            rows.append((os.path.relpath(path, output), said))
    if not rows:
        raise ValueError(f"none of the {len(pictures)} pictures in {folder} can be read")
    write_caption_sheet(rows, output / "captions.html", title=f"Captions of {folder.resolve().name}")
    left_out = f" ({len(pictures) - len(rows)} left out)" if len(rows) < len(pictures) else ""
    print(f"{len(rows)} pictures{left_out}: {output / 'captions.jsonl'}, {output / 'captions.html'}")


if __name__ == "__main__":
    with clear_errors():
        main()
