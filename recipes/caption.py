"""Caption a folder of pictures.

    hf-distinct caption FOLDER --model outputs/quickstart
    hf-distinct caption FOLDER --model user/name --num_samples 10 --rerank_with ViT-B-32:openai

The recipe reads every picture in FOLDER and in the folders below it. It writes to --output_dir captions.jsonl, with
one line for each picture in the order of their names, and captions.html, a page with small copies of at most 1,000
pictures that you can move and send. It names pictures that it cannot read, and leaves them out. It never overwrites a
file that you made or changed: the new file gets a number. If you stop it, its captions so far are in
captions.unfinished.jsonl.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from hf_distinct.data.images import ImageError, picture_files
from hf_distinct.files import run_lock
from hf_distinct.inference.captioning import Captioner
from hf_distinct.reporting.caption_sheet import write_caption_sheet
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small, unused_settings
from hf_distinct.runs.dataset_settings import CAPTIONER_FORMS, CLIP_FORMS, HELP
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import or_warn, own_files
from hf_distinct.scorer import ClipScorer, shipped
from hf_distinct.text.problems import refuse

SHOWN = 1000  # about 5 MB
logger = logging.getLogger("caption")


@dataclass
class Settings:
    """Which pictures to caption, and how."""

    folder: str = field(metadata={"help": "Folder of the pictures, with the folders below it."})
    model: str | None = field(
        default=None,
        metadata={"help": f"Captioner: {CAPTIONER_FORMS}. Default: the shipped `captioner`, for emoji scenes."},
    )
    output_dir: str = field(
        default="outputs/captions", metadata={"help": "Folder to write captions.jsonl and captions.html to."}
    )
    num_samples: int = field(
        default=0, metadata={"help": "Number of captions to sample for each picture. 0: only the best caption."}
    )
    rerank_with: str | None = field(
        default=None,
        metadata={"help": f"CLIP that chooses one of the samples: {CLIP_FORMS}. Default: all samples are written."},
    )
    guidance: float = field(
        default=1.0,
        metadata={
            "help": "Guidance strength; 1 is none. Values of 1.5 to 3 give more detail, from a captioner that was "
            "trained with `hf-distinct warm-up --drop_images 0.5`."
        },
    )
    batch_size: int = field(default=32, metadata={"help": HELP["caption_batch_size"]})
    num_workers: int = field(default=min(8, os.cpu_count() or 1), metadata={"help": HELP["num_workers"]})
    seed: int = field(default=0, metadata={"help": HELP["seed"]})

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        if not self.num_samples:
            yield from unused_settings(self, ("seed",), "without --num_samples: nothing is sampled")
            if self.rerank_with:
                yield "--rerank_with chooses among samples: set --num_samples too, for example to 10."
        yield from too_small(self, num_samples=0, batch_size=1, num_workers=0)
        if not self.guidance > 0:
            yield f"guidance={self.guidance} must be positive; 1 is none."


def write_lines(
    captioned: Iterable[tuple[Path, str | list[str] | ImageError]], path: Path, folder: Path
) -> list[tuple[Path, str | list[str]]]:
    """Write a line for each readable picture, and return the captions; the lines stay if an error ends it early."""
    rows: list[tuple[Path, str | list[str]]] = []
    with open(path, "w", encoding="utf-8") as lines, logging_redirect_tqdm():
        try:
            for picture, said in captioned:
                if isinstance(said, ImageError):
                    logger.warning("A picture was left out: %s", said)
                    continue
                key = "caption" if isinstance(said, str) else "captions"
                lines.write(json.dumps({"file_name": picture.relative_to(folder).as_posix(), key: said}) + "\n")
                rows.append((picture, said))
        except BaseException:
            logger.warning("The run was not finished. The captions of %d pictures are in %s.", len(rows), path)
            raise
    return rows


def main() -> None:
    """Caption the pictures; write captions and page."""
    (settings,) = parse_settings(Settings, description=__doc__, first=("folder",))
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
        raise ValueError(f"None of the {len(pictures)} pictures in {folder} can be read: see the warnings above.")
    with own_files(output, "captions.jsonl") as (lines_path,):
        unfinished.replace(lines_path)
    shown = rows[:: -(-len(rows) // SHOWN)]
    some = f"{len(shown)} of {len(rows)} pictures; captions.jsonl has all of them." if len(shown) < len(rows) else ""
    title = f"Captions of {folder.resolve().name}"
    with or_warn("captions.html"), own_files(output, "captions.html") as (sheet_path,):
        write_caption_sheet(shown, sheet_path, title=title, root=folder, remark=some)
    left_out = f" ({len(pictures) - len(rows)} left out)" if len(rows) < len(pictures) else ""
    print(f"{len(rows)} pictures{left_out}: {lines_path}, captions.html")


if __name__ == "__main__":
    with clear_errors():
        main()
