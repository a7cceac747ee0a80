"""Measure captioners, or captions from any source, side by side.

    python recipes/evaluate_captions.py --model outputs/quickstart captioner                       # on emoji scenes
    python recipes/evaluate_captions.py --model user/name --dataset coco/dataset_coco.json --image_root coco
    python recipes/evaluate_captions.py --captions ours.json theirs.json --references captions_val2014.json

`--num_beams 5` captions by beam search too, and `--grammar FOLDER` adds a judge of grammar that
recipes/train_grammar.py made. If captions cover only a part of the images, all systems are measured on that part, and
the table says how many images it has. The recipe prints a table, with people's captions too, and writes
OUT/metrics.json (figures of each system, named as by train.py), OUT/intervals.json (95 % bootstrap intervals of each
figure, and of the paired differences between systems), OUT/captions/SYSTEM.json (COCO results) and OUT/captions.html
(pictures with the captions of each system).
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
from hf_distinct.evaluation.bootstrap import Statistic, compare, mean_of, resample, value_of
from hf_distinct.evaluation.diversity import novel
from hf_distinct.evaluation.fluency import LanguageJudges, perplexity_distance
from hf_distinct.evaluation.java_metrics import check_java, meteor_scores, spice_scores
from hf_distinct.files import run_lock
from hf_distinct.gallery import Gallery
from hf_distinct.inference.captioning import Captioner
from hf_distinct.reporting import format_table
from hf_distinct.reporting.caption_sheet import write_caption_sheet
from hf_distinct.runs.arguments import clear_errors, parse_settings, unused_settings
from hf_distinct.runs.dataset_settings import DatasetSettings, is_shipped
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import or_warn, own_files, write_json
from hf_distinct.scorer import ClipScorer, shipped_or_named
from hf_distinct.text.problems import refuse

JAVA = {"METEOR": meteor_scores, "SPICE": spice_scores}
CLIPS = {"judge": "judge", "scorer": "scorer"}
"""The settings that name a CLIP, and the shipped one that measures emoji scenes by default."""
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
"""Figures in the table, under scorer and judge each where they are of a CLIP."""
logger = logging.getLogger("evaluate")


@dataclass
class Settings(DatasetSettings):
    """What to measure, and on which pictures."""

    model: list[str] = field(
        default_factory=list,
        metadata={"help": "Captioners to measure: folders, Hub ids, or `captioner`, the shipped one."},
    )
    captions: list[str] = field(
        default_factory=list,
        metadata={"help": 'COCO results to measure, one JSON file for each system: [{"image_id", "caption"}].'},
    )
    references: str | None = field(
        default=None,
        metadata={
            "help": "COCO captions JSON with the references of --captions. No pictures are read then, and no "
            "CLIP measures."
        },
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder for figures and captions."})
    split: str = field(default="test", metadata={"help": "Split of the dataset to measure on."})
    test_size: int | None = field(
        default=None, metadata={"help": "Number of images to measure on, from the first. Default: all."}
    )
    scenes_seed: int = field(default=0, metadata={"help": "Seed of the emoji scenes."})
    scorer: str | None = field(
        default=None,
        metadata={
            "help": "A CLIP that measures: an open_clip NAME:TAG, a folder, hf-hub:ID, or the name of a shipped one. "
            "Default: a shipped one for emoji scenes, none for other pictures."
        },
    )
    judge: str | None = field(
        default=None, metadata={"help": "Another CLIP that measures and that training never saw, in the same forms."}
    )
    clip_prompt: str = field(
        default="",
        metadata={"help": 'Text that CLIPScore puts before each caption. Published figures use "A photo depicts ".'},
    )
    num_neighbours: int = field(
        default=5,
        metadata={"help": "Number of similar images mined for each image, to measure retrieval among them. 0: none."},
    )
    train_captions: str | None = field(
        default=None,
        metadata={"help": "COCO captions JSON of the training captions, for novelty. Default: the split `train`."},
    )
    language_model: str | None = field(
        default=None, metadata={"help": "Causal language model that measures perplexity: a Hub id or a folder."}
    )
    grammar: str | None = field(
        default=None,
        metadata={"help": "Folder of a judge of grammar, written by recipes/train_grammar.py, that measures too."},
    )
    java_metrics: list[str] = field(default_factory=list, metadata={"help": "Metrics that need Java: METEOR, SPICE."})
    guidance: list[float] = field(
        default_factory=list,
        metadata={"help": "Guidance strengths with which each --model captions again."},
    )
    num_beams: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of beams with which each --model captions again; 1 is greedy."},
    )
    best_of: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of samples from which each --model captions again: the scorer chooses the best."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of --best_of."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    resamples: int = field(default=1000, metadata={"help": "Number of bootstrap draws."})
    batch_size: int = field(default=32, metadata={"help": "Number of pictures captioned at a time."})

    def __post_init__(self) -> None:
        """Refuse what does not go together; raises ValueError."""
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that has no effect with the others, or whose value is not possible."""
        yield from self.model_problems({}, CLIPS)
        if not self.model and not self.captions:
            yield "There is nothing to measure: give --model, --captions, or both."
        if self.references is not None:
            if self.model or not self.drawn:
                yield "--references is for --captions alone; a --model needs the pictures of a --dataset."
            needing = ("split", "scenes_seed", "scorer", "judge", "clip_prompt", "num_neighbours")
            yield from unused_settings(self, needing, "with --references, which has no pictures")
        elif not self.clips:
            yield from unused_settings(self, ("clip_prompt", "num_neighbours"), "without --scorer and --judge")
        if not self.model:
            yield from unused_settings(self, ("guidance", "num_beams", "best_of"), "without --model: ways to write")
            if self.language_model is None:
                yield from unused_settings(self, ("batch_size",), "without --model or --language_model")
        if self.best_of and "scorer" not in self.clips:
            yield "--best_of needs the --scorer, which chooses."
        if not self.best_of:
            yield from unused_settings(self, ("seed", "temperature"), "without --best_of: nothing else is drawn")
        for name in ("test_size", "resamples", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield f"{name}={value} should be at least 1."
        for name in ("guidance", "num_beams", "best_of"):
            if any(value <= 0 for value in getattr(self, name)):
                yield f"{name}={getattr(self, name)} should be positive."
        if not self.temperature > 0:
            yield f"temperature={self.temperature} should be positive."
        for name in self.java_metrics:
            if name not in JAVA:
                yield f"java_metrics: {name!r} is unknown; choose METEOR, SPICE or both."

    @property
    def clips(self) -> set[str]:
        """Which of scorer and judge speak here; of pictures that are no emoji scenes, only those that are named."""
        return {name for name in CLIPS if getattr(self, name) or (self.drawn and getattr(self, name) is None)}


@dataclass
class Measured:
    """What is measured, and on what.

    Attributes:
        gallery: the images, with their pictures unless only references are given.
        training: captions that a captioner was trained on, for novelty.
        captions: what each file of captions says of each image, by id.
        total: images of the test set; the gallery has those of which every file says something.
    """

    gallery: Gallery
    training: list[str]
    captions: dict[str, dict[str, str]]
    total: int


def prepare(settings: Settings) -> Measured:
    """Read all that is measured, and on what."""
    training: list[list[str]] = []
    if settings.references is not None:
        references = read_coco_references(settings.references)
        dataset = Dataset.from_dict({"image_id": list(references), "captions": list(references.values())})
        models = {}
    else:
        dataset, training = load(settings)
        models = settings.models({}, CLIPS)
        if not models:
            logger.warning("No CLIP measures these captions: name --scorer and --judge, e.g. ViT-B-32:openai.")
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
    return Measured(gallery, [caption for own in training for caption in own], captions, len(dataset))


def captioned(dataset: Dataset, captions: Mapping[str, Mapping[str, str]]) -> Dataset:
    """The rows of which every file of captions says something.

    Raises:
        ValueError: there are none.
    """
    image_ids = dataset["image_id"][:]
    rows = list(range(len(dataset)))
    for file, found in captions.items():
        if missing := [image_id for image_id in image_ids if image_id not in found]:
            logger.warning(
                "%s: %d of the %d images of the test set have no caption, the first with image_id %s: everything is "
                "measured on the others", file, len(missing), len(image_ids), missing[0],
            )  # fmt: skip
        rows = [row for row in rows if image_ids[row] in found]
    if not rows:
        raise ValueError(f"{', '.join(captions)} have captions of no image in common.")
    return dataset if len(rows) == len(dataset) else dataset.select(rows)


def load(settings: Settings) -> tuple[Dataset, list[list[str]]]:
    """The pictures to measure on, and the captions of the split `train`."""
    if settings.drawn:
        dataset = emoji_scenes(settings.split, settings.test_size or 1000, settings.scenes_seed)
        return dataset, emoji_scenes("train", 4000, settings.scenes_seed)["captions"][:]
    splits = settings.load()
    if settings.split not in splits:
        raise ValueError(f"{settings.dataset} has no split {settings.split!r}; it has {', '.join(splits)}.")
    return splits[settings.split], splits["train"]["captions"][:] if settings.split != "train" else []


def collect(settings: Settings, gallery: Gallery, captions: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The captions of each system, in the order of the gallery."""
    systems: dict[str, list[str]] = {}
    for source in settings.model:
        name = add(systems, source, [])
        if is_shipped(source) and not settings.drawn:
            logger.warning("--model %s is a captioner that hf_distinct ships, which knows emoji scenes only.", source)
        captioner = Captioner(shipped_or_named(source))
        images, how = gallery.dataset["image"], {"batch_size": settings.batch_size, "progress": True}
        systems[name] = said(captioner(images, **how))
        for gamma in settings.guidance:
            systems[f"{name} guidance {gamma:g}"] = said(captioner(images, guidance=gamma, **how))
        for beams in settings.num_beams:
            systems[f"{name} beams {beams}"] = said(captioner(images, num_beams=beams, **how))
        captioner.scorer = gallery.clips.get("scorer")
        draw: dict[str, Any] = {"seed": settings.seed, "temperature": settings.temperature}
        for count in settings.best_of:
            systems[f"{name} best of {count}"] = said(captioner(images, count, **draw, **how))
    for file, found in captions.items():
        add(systems, Path(file).stem, [found[image_id] for image_id in gallery.dataset["image_id"]])
    return systems


def said(captions: Sequence[Any]) -> list[str]:
    """One caption an image."""
    return [str(caption) for caption in captions]


def add(systems: dict[str, list[str]], source: str, captions: list[str]) -> str:
    """Add a system under the shortest end of its path that no other has, and return that name."""
    parts = [part for part in Path(source).parts if part != "/"]
    names = ["-".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    name = next((name for name in names if name not in systems), None)
    if name is None:
        raise ValueError(f"{source} is given twice.")
    systems[name] = captions
    return name


def java_figures(names: Sequence[str], captions: list[str], gallery: Gallery) -> dict[str, tuple[float, Statistic]]:
    """METEOR and SPICE: the figure, and the mean over images by which the bootstrap knows its spread."""
    figures = {}
    for name in names:
        value, each = JAVA[name](captions, gallery.references)
        figures[name] = (value, mean_of(np.nan_to_num(each)))
    return figures


def write_sheet(path: Path, systems: Mapping[str, list[str]], gallery: Gallery) -> None:
    """Pictures evenly spread over the gallery, with what each system says of them, and a person."""
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
    """A figure with its interval, as the table has it."""
    sign = "+" if signed else ""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def main() -> None:
    """Caption, measure, compare, write."""
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
            statistics["novelty"] = mean_of(novel(captions, measured.training))
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
    """Print the tables, a few systems at a time beside people, and how the others differ from the first."""
    clips = [f"{clip}/{name}" for name in SHOWN for clip in CLIPS]
    shown = [name for name in (*clips, *SHOWN) if any(name in of for of in metrics.values())]
    systems = [name for name in metrics if name != PEOPLE]
    for start in range(0, len(systems), SHOWN_SYSTEMS):
        columns = {name: metrics[name] for name in systems[start : start + SHOWN_SYSTEMS]}
        columns |= {"people": metrics[PEOPLE]} if PEOPLE in metrics else {}
        rows = {name: {system: of[name] for system, of in columns.items() if name in of} for name in shown}
        print(format_table(rows, list(columns)), end="\n\n")
    some = "each caption of an image held against its others, averaged"
    none = "There is no column of people: each image has a single caption, and none to compare it with."
    print(f"people: {some}" if PEOPLE in metrics else none)
    for pair, figures in found.items():
        if pair.startswith(f"{first} - "):
            decided = {k: each for k, each in figures.items() if k in shown and not each["low"] <= 0 <= each["high"]}
            print(f"\n{pair}: 95 % intervals without 0 (all: intervals.json)")
            width = max(map(len, decided), default=0)
            print("\n".join(f"  {name:<{width}}  {cell(each, True)}" for name, each in decided.items()) or "  none")


def chances(gallery: Gallery) -> Iterator[str]:
    """What R@1 is by chance, in a line, where a CLIP measures."""
    chance = {clip: np.mean([1 / (1 + len(own)) for own in lists]) for clip, lists in gallery.neighbours.items()}
    near = [f"{value:.3f} under the {clip}" for clip, value in chance.items()]
    if gallery.clips:
        among = f", among each image's neighbours {', '.join(near)}" if near else ""
        yield f"\nR@1 by chance: {1 / len(gallery.references):.3f} among all images{among}"


if __name__ == "__main__":
    with clear_errors():
        main()
