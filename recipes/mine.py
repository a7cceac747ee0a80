r"""Embed captioned pictures with CLIP before the training, and mine the similar images of each image.

    hf-distinct mine --dataset captions.json --image_root images --scorer ViT-B-32:openai --output_dir mined
    hf-distinct train --dataset captions.json --image_root images --scorer ViT-B-32:openai \
        --model_name_or_path my/captioner --mined mined --pool_neighbours 2      # training reads the folder
    hf-distinct mine --accelerate_config ddp --num_processes 8 ...              # eight processes share the embedding

The recipe first checks the scorer: it reports how often people's captions find their picture (R@1) on the validation
split, because the rewards of a scorer that cannot tell your pictures apart are noise. It writes to --output_dir the
embeddings in half precision, neighbours.safetensors, statistics.json and neighbours.html, a page of images beside
their neighbours. If it is interrupted, the same command continues where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import faiss
import torch
from accelerate.state import PartialState
from datasets import Dataset, Image

from hf_distinct.data import embed_dataset
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.images import decode_image
from hf_distinct.data.mining import MiningSettings, find_neighbours
from hf_distinct.data.neighbours import FILE, Neighbours
from hf_distinct.data.scorer_check import GALLERY, ScorerCheck, check_scorer
from hf_distinct.files import run_lock
from hf_distinct.reporting import format_table
from hf_distinct.reporting.neighbour_sheet import SIZE, SheetPicture, write_neighbour_sheet
from hf_distinct.reporting.picture import fit_image
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small, unused_settings
from hf_distinct.runs.dataset_settings import CLIP_FORMS, HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import or_warn, own_files, write_json
from hf_distinct.scorer import ClipScorer
from hf_distinct.text.problems import refuse

SCORER = {"scorer": "scorer"}
"""The setting that names the CLIP, with its default on emoji scenes."""
FEW = 4
"""The least number of pictures on which a scorer is checked, if another split has as many."""
STATISTICS, SHEET = "statistics.json", "neighbours.html"
SHEET_ROWS = 24


@dataclass
class Settings(DatasetSettings):
    """Which pictures to embed with which CLIP, and what counts as a neighbour."""

    train_size: int = field(default=4000, metadata={"help": HELP["train_size"]})
    scenes_seed: int = field(default=0, metadata={"help": HELP["scenes_seed"]})
    scorer: str | None = field(
        default=None,
        metadata={
            "help": f"CLIP that embeds the pictures and captions: {CLIP_FORMS}. Default on emoji scenes: the shipped "
            "`scorer`."
        },
    )
    output_dir: str = field(
        default="outputs/mined", metadata={"help": "Folder to write embeddings, neighbours and statistics to."}
    )
    batch_size: int = field(default=64, metadata={"help": "Number of images that are embedded at a time."})
    num_workers: int = field(default=min(8, os.cpu_count() or 1), metadata={"help": HELP["num_workers"]})
    ddp_timeout: int = field(
        default=1800, metadata={"help": "Number of seconds that a process waits for the others at the start."}
    )
    num_neighbours: int = field(
        default=2, metadata={"help": "Number of neighbours to keep for each image (the paper: 2)."}
    )
    first_rank: int = field(
        default=1,
        metadata={"help": "Rank of the first neighbour to keep, by similarity (the paper: 4, so ranks 4 and 5)."},
    )
    min_similarity: float = field(
        default=-1.0, metadata={"help": "Lowest cosine similarity at which an image counts as a neighbour."}
    )
    max_similarity: float = field(
        default=0.999,
        metadata={"help": "Highest cosine similarity of a neighbour; images above it are near duplicates."},
    )
    via: Literal["images", "captions"] = field(
        default="images",
        metadata={
            "help": "How to find similar images: `images` compares the images, `captions` compares the captions of an "
            "image with the other images (as the paper's code does)."
        },
    )
    search: Literal["auto", "exact", "ivf"] = field(
        default="auto",
        metadata={
            "help": "How to search: `exact` compares all pairs, `ivf` searches a trained index of cells, `auto` "
            "chooses `ivf` for large datasets."
        },
    )
    min_recall: float = field(
        default=0.95, metadata={"help": "Fraction of the true nearest images that --search ivf must find."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        yield from self.model_problems(SCORER)
        if self.search == "exact":
            yield from unused_settings(self, ("min_recall",), "with --search exact, whose recall is 1")
        yield from too_small(self, train_size=1, batch_size=1, num_workers=0, ddp_timeout=1)


@dataclass(frozen=True)
class Check:
    """How well people's captions find their picture on a split.

    Attributes:
        found: the figures.
        split: the name of the split.
        seen: whether it is the split on which a scorer may have been trained, which makes its figures too high.
    """

    found: ScorerCheck
    split: str
    seen: bool

    @property
    def where(self) -> str:
        """The pictures that were measured on, in words."""
        seen = " (the other splits are too small; too high if the scorer was trained on it)" if self.seen else ""
        return f"{self.found.gallery} pictures of the split {self.split}{seen}"


def load_splits(settings: Settings) -> dict[str, Dataset]:
    """Load the pictures to train on, and others to check the scorer on."""
    if settings.drawn:
        return {
            "train": emoji_scenes("train", settings.train_size, settings.scenes_seed),
            "validation": emoji_scenes("validation", GALLERY, settings.scenes_seed),
        }
    return dict(settings.load())


def check(splits: dict[str, Dataset], scorer: ClipScorer, batch_size: int, num_workers: int) -> Check:
    """Measure the scorer on a split on which it was not trained, if one has enough pictures.

    Raises:
        ValueError: there are fewer than two pictures.
    """
    names = [name for name in ("validation", "test", "train") if name in splits]
    chosen = next((name for name in names if len(set(splits[name]["image_id"])) >= FEW), "train")
    some = splits[chosen].select(range(min(GALLERY, len(splits[chosen]))))
    dataset, embeddings = embed_dataset(some, scorer, None, batch_size, False, num_workers)
    return Check(check_scorer(embeddings, dataset["image_id"]), chosen, chosen == "train")


def sheet_rows(dataset: Dataset, found: Neighbours) -> list[list[SheetPicture]]:
    """Images evenly spread over the data, each with its neighbours: nobody picked them."""
    encoded = dataset.select_columns(["image", "captions", "image_id"]).cast_column("image", Image(decode=False))

    def picture(row: int, label: str) -> SheetPicture:
        example = encoded[row]
        image = fit_image(decode_image(example["image"]), SIZE)  # a sheet of whole photographs would take gigabytes
        return SheetPicture(image, example["captions"][0], f"{label}{example['image_id']}")

    rows = []
    for row in range(0, len(dataset), max(len(dataset) // SHEET_ROWS, 1))[:SHEET_ROWS]:
        taken = zip(found.taken[row].tolist(), found.similarities[row, found.first_rank - 1 :].tolist(), strict=True)
        neighbours = [
            picture(neighbour, f"rank {found.first_rank + place}, {similarity:.3f}: ")
            for place, (neighbour, similarity) in enumerate(taken)
            if neighbour >= 0
        ]
        rows.append([picture(row, ""), *neighbours])
    return rows


def report(check: Check, statistics: dict[str, Any]) -> str:
    """Summarise the check and the neighbours, for the screen and the sheet."""
    search = statistics["search"]
    how = "exact" if search["kind"] == "exact" else f"in {search['probes']} of {search['cells']} cells"
    recall = "" if search["kind"] == "exact" else f", recall@{search['recall_depth']} {search['recall']:.3f}"
    rejected = statistics["share of images with rejected candidates"]
    table = format_table(statistics["similarity"]) if statistics["similarity"] else "no image has a neighbour"
    return "\n".join(
        [
            f"R@1 of people's captions: {check.found.recall_at_1:.3f} among {check.where}",
            f"{statistics['images']} images, search {how}{recall}; ranks {search['first_rank']} to "
            f"{statistics['ranks taken'][1]} taken, {statistics['images with fewer neighbours']} images have fewer",
            "images with rejected candidates: " + ", ".join(f"{k} {v:.1%}" for k, v in rejected.items()),
            "",
            "similarity",
            table,
        ]
    )


def main() -> None:
    """Embed, check the scorer, mine, report."""
    (settings,) = parse_settings(Settings, description=__doc__)
    mining = MiningSettings(
        num_neighbours=settings.num_neighbours, first_rank=settings.first_rank, via=settings.via,
        min_similarity=settings.min_similarity, max_similarity=settings.max_similarity, search=settings.search,
        min_recall=settings.min_recall,
    )  # fmt: skip
    timeout = timedelta(seconds=settings.ddp_timeout)
    process = PartialState(cpu=not torch.accelerator.is_available(), timeout=timeout)
    show_logs(main_process=process.is_main_process)
    output = Path(settings.output_dir)
    if process.is_main_process:
        run_lock.claim(output)
    name = settings.models(SCORER)["scorer"]
    scorer = ClipScorer(name).to(process.device)
    splits = load_splits(settings)
    dataset, embeddings = embed_dataset(
        splits["train"], scorer, output, settings.batch_size, settings.strict, settings.num_workers
    )
    if not process.is_main_process:
        return
    checked = check(splits, scorer, settings.batch_size, settings.num_workers)
    checked.found.warn(f"{settings.scorer or name} on the split {checked.split}")
    if process.num_processes > 1:  # launchers give each process one thread; the others are done
        faiss.omp_set_num_threads(os.cpu_count() or 1)
    found = find_neighbours(dataset, embeddings, mining)
    found.log_summary()
    found.save(output / FILE)
    statistics = {
        "R@1 of people's captions": checked.found.recall_at_1,
        "gallery": checked.found.gallery,
        "split of the gallery": checked.split,
        **found.statistics(),
    }
    write_json(output / STATISTICS, statistics)
    summary = report(checked, statistics)
    with or_warn(SHEET), own_files(output, SHEET) as (path,):
        write_neighbour_sheet(sheet_rows(dataset, found), path, summary=summary)
    print(summary)
    print(f"\nembeddings, {FILE}, {STATISTICS}, {SHEET}: {os.path.relpath(output)}")


if __name__ == "__main__":
    with clear_errors():
        main()
