"""Caption a folder of pictures.

    python recipes/caption.py FOLDER --model outputs/quickstart
    python recipes/caption.py FOLDER --model user/name --num_samples 10 --rerank_with ViT-B-32:openai

Writes OUT/captions.jsonl, a line for each picture in the order of their names, and OUT/captions.html, a page that can
be moved and sent: it holds small copies of the pictures, at most 1,000. Pictures that cannot be read are named and
left out. Files of these names that no recipe wrote stay: the new ones get a number. If the run is stopped, what it has
written so far is in OUT/captions.unfinished.jsonl.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from hf_distinct.data.images import ImageError, picture_files
from hf_distinct.files import run_lock
from hf_distinct.inference.captioning import Captioner
from hf_distinct.reporting.caption_sheet import write_caption_sheet
from hf_distinct.runs.arguments import clear_errors, parse_settings, unused_settings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import or_warn, own_files
from hf_distinct.scorer import ClipScorer, shipped
from hf_distinct.text.problems import refuse

SHOWN = 1000  # about 5 MB
logger = logging.getLogger("caption")


@dataclass
class Settings:
    """Which pictures, by which captioner."""

    folder: str = field(metadata={"help": "Folder of the pictures; folders below it are included."})
    model: str | None = field(
        default=None,
        metadata={"help": "The captioner: a folder or a Hub id. Default: the shipped one, for emoji scenes."},
    )
    output_dir: str = field(
        default="outputs/captions", metadata={"help": "Folder for captions.jsonl and captions.html."}
    )
    num_samples: int = field(
        default=0, metadata={"help": "Number of captions to sample for each picture. 0: only the best caption."}
    )
    rerank_with: str | None = field(
        default=None,
        metadata={
            "help": "The CLIP that chooses among the samples: NAME:TAG, a folder, or the name of a shipped one."
        },
    )
    guidance: float = field(
        default=1.0,
        metadata={
            "help": "Guidance strength; above 1 (1.5 to 3), a captioner trained by warm_up.py --drop_images 0.5 "
            "says more."
        },
    )
    batch_size: int = field(default=32, metadata={"help": "Number of pictures captioned at a time."})
    num_workers: int = field(
        default=min(8, os.cpu_count() or 1), metadata={"help": "Number of processes that read pictures."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that has no effect with the others, or whose value is not possible."""
        if not self.num_samples:
            yield from unused_settings(self, ("seed",), "without --num_samples: nothing is drawn")
            if self.rerank_with:
                yield "--rerank_with chooses among samples: give --num_samples, 10 for instance."
        for name, least in (("num_samples", 0), ("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)} should be at least {least}."
        if not self.guidance > 0:
            yield f"guidance={self.guidance} should be positive; 1 is none."


def parse() -> Settings:
    """The settings; what comes first is the folder, unless it is a YAML file."""
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-") and Path(argv[0]).suffix not in (".yaml", ".yml"):
        argv = ["--folder", *argv]
    return parse_settings(Settings, argv=argv, description=__doc__)[0]


def write_lines(
    captioned: Iterable[tuple[Path, str | list[str] | ImageError]], path: Path, folder: Path
) -> list[tuple[Path, str | list[str]]]:
    """Write a line for each picture that can be read, and return them; whatever ends it early, the lines stay."""
    rows: list[tuple[Path, str | list[str]]] = []
    with open(path, "w", encoding="utf-8") as lines, logging_redirect_tqdm():
        try:
            for picture, said in captioned:
                if isinstance(said, ImageError):
                    logger.warning("left out: %s", said)
                    continue
                key = "caption" if isinstance(said, str) else "captions"
                lines.write(json.dumps({"file_name": picture.relative_to(folder).as_posix(), key: said}) + "\n")
                rows.append((picture, said))
        except BaseException:
            logger.warning("not finished: the captions of %d pictures are in %s", len(rows), path)
            raise
    return rows


def main() -> None:
    """Write captions and sheet."""
    settings = parse()
    show_logs("caption")
    folder, output = Path(settings.folder), Path(settings.output_dir)
    run_lock.claim(output)
    pictures = picture_files(folder)
    scorer = ClipScorer(settings.rerank_with) if settings.rerank_with else None
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
    unfinished = output / "captions.unfinished.jsonl"
    rows = write_lines(zip(pictures, stream, strict=True), unfinished, folder)
    if not rows:
        raise ValueError(f"none of the {len(pictures)} pictures in {folder} can be read")
    with own_files(output, "captions.jsonl") as (lines_path,):
        unfinished.replace(lines_path)
    shown = rows[:: -(-len(rows) // SHOWN)]
    some = f"{len(shown)} of {len(rows)} pictures; captions.jsonl has all." if len(shown) < len(rows) else ""
    title = f"Captions of {folder.resolve().name}"
    with or_warn("captions.html"), own_files(output, "captions.html") as (sheet_path,):
        write_caption_sheet(shown, sheet_path, title=title, root=folder, remark=some)
    left_out = f" ({len(pictures) - len(rows)} left out)" if len(rows) < len(pictures) else ""
    print(f"{len(rows)} pictures{left_out}: {lines_path}, captions.html")


if __name__ == "__main__":
    with clear_errors():
        main()
