"""Measure captioners, or captions from files, side by side.

    hf-distinct evaluate --model outputs/quickstart captioner                     # on emoji scenes
    hf-distinct evaluate --model user/name --dataset coco/dataset_coco.json --image_root coco
    hf-distinct evaluate --captions ours.json theirs.json --references captions_val2014.json

The recipe prints a table of figures with people's captions beside the systems, and writes to --output_dir:

    metrics.json            the figures of each system
    intervals.json          95 % bootstrap intervals of the figures, and of the paired differences between systems
    captions/SYSTEM.json    the captions of each system, as COCO results
    captions.html           pictures with the captions of each system

If a file of captions covers only a part of the images, all systems are measured on that part, and the recipe says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_distinct.data.coco_results import match_image_ids, read_coco_references, read_coco_results, write_coco_results
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.evaluation.blocks import in_blocks
from hf_distinct.evaluation.bootstrap import Statistic, compare, mean_of, resample, value_of
from hf_distinct.evaluation.diversity import novel
from hf_distinct.evaluation.fluency import LanguageJudges, perplexity_distance
from hf_distinct.evaluation.java_metrics import check_java, meteor_scores, spice_scores
from hf_distinct.files import run_lock
from hf_distinct.gallery import Gallery
from hf_distinct.inference.captioning import Captioner
from hf_distinct.reporting import format_table
from hf_distinct.reporting.caption_sheet import write_caption_sheet
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small, unused_settings
from hf_distinct.runs.dataset_settings import CAPTIONER_FORMS, CLIP_FORMS, HELP, DatasetSettings, is_shipped
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import or_warn, own_files, write_json
from hf_distinct.scorer import ClipScorer, shipped_or_named
from hf_distinct.text.problems import refuse

JAVA = {"METEOR": meteor_scores, "SPICE": spice_scores}
CLIPS = {"judge": "judge", "scorer": "scorer"}
"""The settings that name a CLIP, each with its default on emoji scenes."""
COUNTS = ("vocabulary",)
PEOPLE = "people (one caption against the others)"
SHOWN_PICTURES = 24
SHOWN_SYSTEMS = 5
SHOWN = (
    "t2i_R@1", "t2i_R@10", "i2t_R@1", "neighbours_t2i_R@1", "neighbours_i2t_R@1", "CLIPScore", "CIDEr-D", "BLEU-4",
    "ROUGE-L", "METEOR", "SPICE", "grammar", "invention", "bad_endings", "repeats", "perplexity",
    "perplexity_distance", "vocabulary", "mean_length", "unique", "self_BLEU", "novelty", "well_formed", "true",
    "details", "images",
)  # fmt: skip
"""Figures in the table; those of a CLIP appear for scorer and judge each."""
logger = logging.getLogger("evaluate")


@dataclass
class Settings(DatasetSettings):
    """Which captioners or captions to measure, and on which pictures."""

    model: list[str] = field(
        default_factory=list, metadata={"help": f"Captioners to measure, each one {CAPTIONER_FORMS}."}
    )
    captions: list[str] = field(
        default_factory=list,
        metadata={"help": 'Captions to measure: for each system a JSON of COCO results, [{"image_id", "caption"}].'},
    )
    references: str | None = field(
        default=None,
        metadata={"help": "COCO captions JSON of the references of --captions, without pictures. Default: --dataset."},
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder to write the results to."})
    split: str = field(default="test", metadata={"help": HELP["split"]})
    test_size: int | None = field(
        default=None, metadata={"help": f"{HELP['test_size']} Default: all, or 1000 emoji scenes."}
    )
    scenes_seed: int = field(default=0, metadata={"help": HELP["scenes_seed"]})
    scorer: str | None = field(
        default=None,
        metadata={
            "help": f"CLIP to measure with, such as the one that gave the rewards: {CLIP_FORMS}. Default: the shipped "
            "`scorer` for emoji scenes, none for other pictures."
        },
    )
    judge: str | None = field(default=None, metadata={"help": HELP["judge"]})
    clip_prompt: str = field(
        default="",
        metadata={"help": 'Text before each caption in CLIPScore. Published figures use "A photo depicts ".'},
    )
    num_neighbours: int = field(
        default=5,
        metadata={"help": "Number of similar images of each image among which retrieval is measured too. 0: none."},
    )
    train_captions: str | None = field(
        default=None,
        metadata={"help": "COCO captions JSON of the training captions, for novelty. Default: the split `train`."},
    )
    language_model: str | None = field(
        default=None,
        metadata={"help": "Causal language model for perplexity: a folder or a Hub id. Default: no perplexity."},
    )
    grammar: str | None = field(
        default=None,
        metadata={
            "help": "Judge of grammar to measure with: a folder that `hf-distinct train-grammar` wrote. Default: none."
        },
    )
    java_metrics: list[str] = field(
        default_factory=list, metadata={"help": "Metrics to compute with Java: METEOR, SPICE. Default: none."}
    )
    guidance: list[float] = field(
        default_factory=list,
        metadata={"help": "Guidance strengths with which each --model captions again. Default: none."},
    )
    num_beams: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of beams with which each --model captions again; 1 is greedy. Default: none."},
    )
    best_of: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Numbers of samples with which each --model captions again: the scorer chooses one of them. "
            "Default: none."
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of --best_of."})
    seed: int = field(default=0, metadata={"help": HELP["seed"]})
    resamples: int = field(default=1000, metadata={"help": "Number of bootstrap samples for the intervals."})
    batch_size: int = field(default=32, metadata={"help": HELP["caption_batch_size"]})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        yield from self.model_problems({}, CLIPS)
        if not self.model and not self.captions:
            yield "there is nothing to measure: set --model, --captions, or both."
        if self.references is not None:
            if self.model or not self.drawn:
                yield "--references goes with --captions alone: leave it out, so that --dataset gives pictures."
            needing = ("split", "scenes_seed", "scorer", "judge", "clip_prompt", "num_neighbours")
            yield from unused_settings(self, needing, "with --references, which brings no pictures")
        elif not self.clips:
            yield from unused_settings(self, ("clip_prompt", "num_neighbours"), "without --scorer and --judge")
        if not self.model:
            yield from unused_settings(self, ("guidance", "num_beams", "best_of"), "without --model")
            if self.language_model is None:
                yield from unused_settings(self, ("batch_size",), "without --model or --language_model")
        if self.best_of and "scorer" not in self.clips:
            yield "--best_of needs a scorer that chooses among the samples: set --scorer."
        if not self.best_of:
            yield from unused_settings(self, ("seed", "temperature"), "without --best_of: nothing else is sampled")
        yield from too_small(self, test_size=1, resamples=1, batch_size=1)
        for name in ("guidance", "num_beams", "best_of"):
            if any(value <= 0 for value in getattr(self, name)):
                yield f"{name}={getattr(self, name)} must be positive."
        if not self.temperature > 0:
            yield f"temperature={self.temperature} must be positive."
        for name in self.java_metrics:
            if name not in JAVA:
                yield f"--java_metrics {name} is unknown: choose METEOR, SPICE or both."

    @property
    def clips(self) -> set[str]:
        """Which of scorer and judge measure: for pictures other than emoji scenes only those that are set."""
        return {name for name in CLIPS if getattr(self, name) or (self.drawn and getattr(self, name) is None)}


@dataclass
class Measured:
    """What to measure, and on which images.

    Attributes:
        gallery: the images that every file of captions covers, with their pictures unless --references is set.
        training: the captions of each image on which a captioner was trained, for novelty.
        captions: the captions of each file, by image id.
        total: the number of images of the test set.
    """

    gallery: Gallery
    training: Sequence[list[str]]
    captions: dict[str, dict[str, str]]
    total: int


def prepare(settings: Settings) -> Measured:
    """Read everything to measure, and the images to measure on."""
    training: Sequence[list[str]] = []
    if settings.references is not None:
        references = read_coco_references(settings.references)
        dataset = Dataset.from_dict({"image_id": list(references), "captions": list(references.values())})
        models = {}
    else:
        dataset, training = load(settings)
        models = settings.models({}, CLIPS)
        if not models:
            logger.warning("No CLIP measures these captions: set --scorer and --judge, for example ViT-B-32:openai.")
    if settings.test_size is not None:
        dataset = dataset.select(range(min(settings.test_size, len(dataset))))
    if settings.train_captions is not None:
        training = list(read_coco_references(settings.train_captions).values())
    image_ids = dataset["image_id"][:]
    captions = {file: match_image_ids(read_coco_results(file), image_ids, file) for file in settings.captions}
    part = captioned(dataset, captions)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = {role: ClipScorer(models[role]).to(device) for role in CLIPS if role in models}
    gallery = Gallery(part, clips, settings.num_neighbours, settings.clip_prompt, settings.strict)
    return Measured(gallery, training, captions, len(dataset))


def captioned(dataset: Dataset, captions: Mapping[str, Mapping[str, str]]) -> Dataset:
    """Select the rows for which every file has a caption.

    Raises:
        ValueError: there are none.
    """
    image_ids = dataset["image_id"][:]
    rows = list(range(len(dataset)))
    for file, found in captions.items():
        if missing := [image_id for image_id in image_ids if image_id not in found]:
            logger.warning(
                "%s has no caption of %d of the %d images of the test set, the first with image_id %s. All systems "
                "are measured on the other images.", file, len(missing), len(image_ids), missing[0],
            )  # fmt: skip
        rows = [row for row in rows if image_ids[row] in found]
    if not rows:
        raise ValueError(f"{', '.join(captions)} have no image of the test set in common: check their image_id.")
    return dataset if len(rows) == len(dataset) else dataset.select(rows)


def load(settings: Settings) -> tuple[Dataset, Sequence[list[str]]]:
    """Load the pictures to measure on, and the captions of the split `train`."""
    if settings.drawn:
        dataset = emoji_scenes(settings.split, settings.test_size or 1000, settings.scenes_seed)
        return dataset, emoji_scenes("train", 4000, settings.scenes_seed)["captions"]
    splits = settings.load()
    if settings.split not in splits:
        raise ValueError(f"{settings.dataset} has no split {settings.split!r}; it has {', '.join(splits)}.")
    return splits[settings.split], splits["train"]["captions"] if settings.split != "train" else []


def collect(settings: Settings, gallery: Gallery, captions: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Collect the captions of each system, in the order of the gallery."""
    systems: dict[str, list[str]] = {}
    for source in settings.model:
        name = add(systems, source, [])
        if is_shipped(source) and not settings.drawn:
            logger.warning("--model %s is a shipped captioner, which knows only emoji scenes.", source)
        captioner = Captioner(shipped_or_named(source))
        images, how = gallery.dataset["image"], {"batch_size": settings.batch_size, "progress": True}
        systems[name] = list(map(str, captioner(images, **how)))
        for gamma in settings.guidance:
            systems[f"{name} guidance {gamma:g}"] = list(map(str, captioner(images, guidance=gamma, **how)))
        for beams in settings.num_beams:
            systems[f"{name} beams {beams}"] = list(map(str, captioner(images, num_beams=beams, **how)))
        captioner.scorer = gallery.clips.get("scorer")
        draw: dict[str, Any] = {"seed": settings.seed, "temperature": settings.temperature}
        for count in settings.best_of:
            systems[f"{name} best of {count}"] = list(map(str, captioner(images, count, **draw, **how)))
    for file, found in captions.items():
        add(systems, Path(file).stem, [found[image_id] for image_id in gallery.dataset["image_id"]])
    return systems


def add(systems: dict[str, list[str]], source: str, captions: list[str]) -> str:
    """Add a system under the shortest end of its path that is still free, and return that name."""
    parts = [part for part in Path(source).parts if part != "/"]
    names = ["-".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    name = next((name for name in names if name not in systems), None)
    if name is None:
        raise ValueError(f"{source} is named twice: leave one of them out.")
    systems[name] = captions
    return name


def java_figures(names: Sequence[str], captions: list[str], gallery: Gallery) -> dict[str, tuple[float, Statistic]]:
    """Compute METEOR and SPICE: the figure, and for its interval the mean over images."""
    figures = {}
    for name in names:
        value, each = JAVA[name](captions, gallery.references)
        figures[name] = (value, mean_of(np.nan_to_num(each)))
    return figures


def write_sheet(path: Path, systems: Mapping[str, list[str]], gallery: Gallery) -> None:
    """Write a page of pictures, evenly spread over the gallery, with a person's caption and those of the systems."""
    rows = range(0, len(gallery.references), max(len(gallery.references) // SHOWN_PICTURES, 1))
    sheet = [
        (
            gallery.dataset[row]["image"],
            {"a person": gallery.references[row][0], **{system: said[row] for system, said in systems.items()}},
        )
        for row in rows
    ]
    write_caption_sheet(sheet[:SHOWN_PICTURES], path, title="Captions side by side")


def cell(found: Mapping[str, float], signed: bool = False) -> str:
    """Format a figure with its interval."""
    sign = "+" if signed else ""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def main() -> None:
    """Caption, measure, compare, report."""
    (settings,) = parse_settings(Settings, description=__doc__)
    show_logs("evaluate")
    for name in settings.java_metrics:
        check_java(name)  # better now than after the captioning
    output = Path(settings.output_dir)
    run_lock.claim(output)
    judges = LanguageJudges(settings.grammar, settings.language_model, settings.batch_size)
    measured = prepare(settings)
    gallery = measured.gallery
    images = len(gallery.references)
    people, described = gallery.people_statistics(judges.statistics)
    values: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    systems = collect(settings, gallery, measured.captions)
    for system, captions in systems.items():
        with own_files(output, f"captions/{system}.json") as (path,):
            write_coco_results(path, gallery.dataset["image_id"][:], captions)
        statistics = gallery.statistics(captions) | judges.statistics(captions)
        if "perplexity" in people and described == images:
            statistics["perplexity_distance"] = perplexity_distance(statistics["perplexity"], people["perplexity"])
        if measured.training:
            of_training = (text for block in in_blocks(measured.training) for own in block for text in own)
            statistics["novelty"] = mean_of(novel(captions, of_training))
        values[system] = {name: value_of(each, images) for name, each in statistics.items()}
        for name, (value, each) in java_figures(settings.java_metrics, captions, gallery).items():
            values[system][name], statistics[name] = value, each
        drawn[system] = resample(statistics, images, settings.resamples)
    found = compare(values, drawn)
    if people:  # beside the systems, but not compared with them: its references are others
        values[PEOPLE] = {name: value_of(each, described) for name, each in people.items()}
        found |= compare({PEOPLE: values[PEOPLE]}, {PEOPLE: resample(people, described, settings.resamples)})
    written = {
        system: {"images": described if system == PEOPLE else images}
        | {name: round(value) if name in COUNTS else value for name, value in figures.items()}
        for system, figures in values.items()
    }
    write_json(output / "metrics.json", written)
    write_json(output / "intervals.json", found)
    if "image" in gallery.dataset.column_names:
        with or_warn("captions.html"), own_files(output, "captions.html") as (path,):
            write_sheet(path, systems, gallery)
    report(written, found, next(iter(systems)))
    for line in (*chances(gallery), *judges.told()):
        print(line)
    of_all = f" of {measured.total}" if images < measured.total else ""
    print(f"{images}{of_all} images: {output / 'metrics.json'}, intervals.json, captions/, captions.html")


def report(
    metrics: Mapping[str, Mapping[str, float]], found: Mapping[str, Mapping[str, Mapping[str, float]]], first: str
) -> None:
    """Print tables of a few systems each, beside people, and the differences from the first system."""
    clips = [f"{clip}/{name}" for name in SHOWN for clip in CLIPS]
    shown = [name for name in (*clips, *SHOWN) if any(name in of for of in metrics.values())]
    systems = [name for name in metrics if name != PEOPLE]
    for start in range(0, len(systems), SHOWN_SYSTEMS):
        columns = {name: metrics[name] for name in systems[start : start + SHOWN_SYSTEMS]}
        columns |= {"people": metrics[PEOPLE]} if PEOPLE in metrics else {}
        rows = {name: {system: of[name] for system, of in columns.items() if name in of} for name in shown}
        print(format_table(rows, list(columns)), end="\n\n")
    some = "each reference caption of an image, measured against the others of that image, on average"
    none = "The table has no column for people, because each image has only one reference caption."
    print(f"people: {some}" if PEOPLE in metrics else none)
    for pair, figures in found.items():
        if pair.startswith(f"{first} - "):
            decided = {k: each for k, each in figures.items() if k in shown and not each["low"] <= 0 <= each["high"]}
            print(f"\n{pair}: 95 % intervals without 0 (all: intervals.json)")
            width = max(map(len, decided), default=0)
            print("\n".join(f"  {name:<{width}}  {cell(each, True)}" for name, each in decided.items()) or "  none")


def chances(gallery: Gallery) -> Iterator[str]:
    """The line that names R@1 by chance, if a CLIP measures."""
    chance = {clip: np.mean([1 / (1 + len(own)) for own in lists]) for clip, lists in gallery.neighbours.items()}
    near = [f"{value:.3f} under the {clip}" for clip, value in chance.items()]
    if gallery.clips:
        among = f", among each image's neighbours {', '.join(near)}" if near else ""
        yield f"\nR@1 by chance: {1 / len(gallery.references):.3f} among all images{among}"


if __name__ == "__main__":
    with clear_errors():
        main()
