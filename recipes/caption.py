"""Caption the pictures of a folder, of tar shards, or of parquet files.

    hf-distinct caption FOLDER --model outputs/quickstart
    hf-distinct caption FOLDER --model user/name --num_samples 10 --rerank_with ViT-B-32:openai
    hf-distinct caption 'shards/{000..099}.tar' --model user/name --output_file captions.parquet --num_processes 8

The recipe captions every picture in FOLDER and in the folders below it: picture files, pictures in tar shards, and
images in parquet files. It writes to --output_dir captions.jsonl, with one line for each picture in the order of their
names, and captions.html, a page with small copies of at most 1,000 pictures that you can move and send. It names
pictures that it cannot read, and leaves them out. It never overwrites a file that you made or changed: the new file
gets a number.

If the run is stopped or killed, the same command continues it. Finished captions are not written again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from accelerate.state import PartialState

from hf_distinct.data.images import ImageError
from hf_distinct.files import run_lock
from hf_distinct.files.parts import written_whole
from hf_distinct.inference.caption_output import ENDINGS, caption_writer
from hf_distinct.inference.captioning import Captioner
from hf_distinct.inference.resumable_captions import ResumableCaptions
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

    pictures: str = field(
        metadata={
            "help": "Folder of picture files, tar shards and parquet files, with the folders below it; or one such "
            "file; or a pattern such as 'shards/{000..099}.tar'."
        }
    )
    model: str | None = field(
        default=None,
        metadata={"help": f"Captioner: {CAPTIONER_FORMS}. Default: the shipped `captioner`, for emoji scenes."},
    )
    output_dir: str = field(
        default="outputs/captions", metadata={"help": "Folder to write --output_file and captions.html to."}
    )
    output_file: str = field(
        default="captions.jsonl",
        metadata={"help": "Name of the file of captions, which is JSONL or parquet: NAME.jsonl or NAME.parquet."},
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
    ddp_timeout: int = field(
        default=1800, metadata={"help": "Number of seconds that a process waits for the others at the start."}
    )

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        if not self.num_samples:
            yield from unused_settings(self, ("seed",), "without --num_samples: nothing is sampled")
            if self.rerank_with:
                yield "--rerank_with chooses among samples: set --num_samples too, for example to 10."
        if Path(self.output_file).suffix not in ENDINGS or Path(self.output_file).name != self.output_file:
            yield f"--output_file {self.output_file} must be a name that ends with {' or '.join(ENDINGS)}."
        yield from too_small(self, num_samples=0, batch_size=1, num_workers=0, ddp_timeout=1)
        if not self.guidance > 0:
            yield f"guidance={self.guidance} must be positive; 1 is none."


    @property
    def several(self) -> bool:
        """Whether each picture gets a list of captions."""
        return self.num_samples > 0 and not self.rerank_with


def write_captions(
    run: ResumableCaptions, settings: Settings, path: Path
) -> tuple[int, list[tuple[int, str | list[str]]]]:
    """Join the parts in one file; name the pictures that cannot be read.

    Returns:
        The number of captioned pictures, and numbers and captions of at most `SHOWN` of them.
    """
    count, every = 0, -(-len(run.index) // SHOWN)
    shown: list[tuple[int, str | list[str]]] = []
    with written_whole(path) as temporary:
        with caption_writer(temporary, path.suffix, settings.several) as write:
            for place, name, said in run.rows():
                if isinstance(said, ImageError):
                    logger.warning("A picture was left out: %s", said)
                    continue
                write(name, said)
                count += 1
                if not place % every:
                    shown.append((place, said))
        if not count:
            raise ValueError(f"None of the {len(run.index)} pictures in {settings.pictures} can be read: see above.")
        run.join(temporary, path)
    return count, shown


def main() -> None:
    """Caption the pictures, together with the other processes; the first one writes captions and page."""
    (settings,) = parse_settings(Settings, description=__doc__, first=("pictures",))
    timeout = timedelta(seconds=settings.ddp_timeout)
    process = PartialState(cpu=not torch.accelerator.is_available(), timeout=timeout)
    show_logs("caption", main_process=process.is_main_process)
    folder = Path(settings.output_dir)
    if process.is_main_process:
        run_lock.claim(folder)
    scorer = ClipScorer(settings.rerank_with) if settings.rerank_with else None
    model = settings.model or shipped("captioner")
    captioner = Captioner(model, scorer, process.device)
    made_by = {
        "--model": f"{Path(model).name}, digest {captioner.fingerprint()}",
        "--rerank_with": f"{Path(scorer.name).name}, digest {scorer.fingerprint}" if scorer else "none",
        **{f"--{name}": getattr(settings, name) for name in ("num_samples", "guidance", "batch_size", "seed")},
    }
    run = ResumableCaptions(
        captioner, folder / settings.output_file, settings.pictures, made_by, settings.batch_size,
        num_samples=settings.num_samples, guidance=settings.guidance, seed=settings.seed,
        num_workers=settings.num_workers,
    )  # fmt: skip
    if finished := run.begin():
        if process.is_main_process:
            print(f"{finished} has all captions already. To write them again, delete {run.record_file}.")
        return
    run.write_parts()
    if not process.is_main_process:
        return
    with own_files(folder, settings.output_file) as (path,):
        count, shown = write_captions(run, settings, path)
    total = len(run.index)
    some = f"{len(shown)} of {count} pictures; {path.name} has all of them." if len(shown) < count else ""
    title = f"Captions of {Path(settings.pictures).resolve().name}"
    with or_warn("captions.html"), own_files(folder, "captions.html") as (sheet_path,):
        rows = ((run.index[place], said) for place, said in shown)
        write_caption_sheet(rows, sheet_path, title=title, root=run.index.root, remark=some)
    run.finish()
    left_out = f" ({total - count} left out)" if count < total else ""
    print(f"{count} pictures{left_out}: {path}, captions.html")


if __name__ == "__main__":
    with clear_errors():
        main()
