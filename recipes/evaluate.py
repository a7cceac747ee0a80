"""Measure captioners, or captions that anyone made, side by side.

    python recipes/evaluate.py --model outputs/quickstart captioner                       # on emoji scenes
    python recipes/evaluate.py --model user/name --dataset coco/dataset_coco.json --image_root coco
    python recipes/evaluate.py --captions ours.json theirs.json --references captions_val2014.json

Ends with a table on the screen and leaves OUT/metrics.json (flat figures of each system, named as by train.py),
OUT/intervals.json (95 % bootstrap intervals of each figure, and of the paired differences between systems) and
OUT/captions/SYSTEM.json (COCO results).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_distinct.arguments import clear_errors, parse_settings
from hf_distinct.captioning import Captioner
from hf_distinct.data import mine_neighbours
from hf_distinct.data.coco_results import read_coco_references, read_coco_results, write_coco_results
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.emoji_scenes import emoji_scenes, scene_metrics
from hf_distinct.data.settings import DatasetSettings
from hf_distinct.evaluation import caption_statistics
from hf_distinct.evaluation.bootstrap import Statistic, difference, interval, mean_of, resample, value_of
from hf_distinct.evaluation.clip_score import clip_scores, ref_clip_scores
from hf_distinct.evaluation.diversity import novel
from hf_distinct.evaluation.java_metrics import check_java, meteor_scores, spice_scores
from hf_distinct.evaluation.retrieval import both_ranks, neighbour_ranks, rank_statistics
from hf_distinct.fluency import LanguageModel, perplexity
from hf_distinct.reporting import format_table
from hf_distinct.scorer import SHIPPED, load_clip, shipped

JAVA = {"METEOR": meteor_scores, "SPICE": spice_scores}
COUNTS = ("vocabulary",)
logger = logging.getLogger("evaluate")


@dataclass
class Settings(DatasetSettings):
    """What to measure, and on which pictures."""

    model: list[str] = field(
        default_factory=list,
        metadata={"help": "Captioners: folders or Hub ids; `captioner` is the shipped one."},
    )
    captions: list[str] = field(
        default_factory=list, metadata={"help": 'COCO results JSON: [{"image_id", "caption"}], a file a system.'}
    )
    references: str | None = field(
        default=None,
        metadata={"help": "COCO captions JSON; with it no pictures are needed, and nothing of CLIP is measured."},
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Where figures and captions go."})
    split: str = field(default="test", metadata={"help": "Which split of the dataset."})
    test_size: int | None = field(default=None, metadata={"help": "The first so many pictures; none: all."})
    scenes_seed: int = field(default=0, metadata={"help": "Which emoji scenes."})
    scorer: str | None = field(
        default="truth_scorer", metadata={"help": "A CLIP: an open_clip NAME:TAG, a folder, or a shipped one's name."}
    )
    judge: str | None = field(default="judge", metadata={"help": "Another that training never saw; same forms."})
    clip_prompt: str = field(
        default="", metadata={"help": 'What CLIPScore puts before captions; published: "A photo depicts ".'}
    )
    num_neighbours: int = field(default=5, metadata={"help": "Similar images mined for each; 0: none."})
    train_captions: str | None = field(
        default=None, metadata={"help": "COCO captions JSON of the training, for novelty; none: the split `train`."}
    )
    language_model: str | None = field(default=None, metadata={"help": "A causal language model, for perplexity."})
    java_metrics: list[str] = field(default_factory=list, metadata={"help": "METEOR, SPICE: where Java is."})
    resamples: int = field(default=1000, metadata={"help": "Draws of the bootstrap."})
    batch_size: int = field(default=32, metadata={"help": "Pictures at a time."})

    def __post_init__(self) -> None:
        """Refuse what does not go together; raises ValueError."""
        super().__post_init__()
        if not self.model and not self.captions:
            raise ValueError("nothing to measure: give --model, --captions, or both.")
        if self.references is not None and (self.model or not self.drawn):
            raise ValueError("--references is for --captions alone; a --model needs the pictures of a --dataset.")
        unknown = [name for name in self.java_metrics if name not in JAVA]
        if unknown:
            raise ValueError(f"java_metrics: there are METEOR and SPICE, not {unknown[0]!r}.")


class TestSet:
    """Images by id, their references, and what CLIP sees in them.

    Args:
        settings: which.
    """

    def __init__(self, settings: Settings) -> None:
        self.dataset: Dataset | None = None
        self.training: list[str] = []
        if settings.references is not None:
            found = read_coco_references(settings.references)
            self.image_ids, self.references = list(found), list(found.values())
        else:
            self.dataset, train = load(settings)
            self.training = [caption for captions in train for caption in captions]
        if settings.train_captions is not None:
            of_training = read_coco_references(settings.train_captions).values()
            self.training = [caption for captions in of_training for caption in captions]
        self.prompt = settings.clip_prompt
        self.clips: dict[str, Any] = {}
        self.image_embeds: dict[str, torch.Tensor] = {}
        self.neighbours: dict[str, list[list[int]]] = {}
        if self.dataset is not None:
            for role, name in (("judge", settings.judge), ("scorer", settings.scorer)):
                if name:
                    self._look(role, name, settings.num_neighbours)
            self.image_ids, self.references = self.dataset["image_id"][:], self.dataset["captions"][:]

    def _look(self, role: str, name: str, num_neighbours: int) -> None:
        clip = self.clips[role] = load_clip(name).to("cuda" if torch.cuda.is_available() else "cpu")
        self.dataset, embeddings = embed_dataset(self.dataset, clip)
        self.image_embeds[role] = embeddings.image_embeds.float()
        if num_neighbours:
            self.neighbours[role] = mine_neighbours(self.dataset, self.image_embeds[role], num_neighbours)[
                "neighbours"
            ][:]

    def statistics(self, captions: list[str]) -> dict[str, Statistic]:
        """Every figure of one caption an image, as a function of the images in the test set."""
        found: dict[str, Statistic] = {}
        for role in self.clips:
            found |= {f"{role}/{name}": each for name, each in self._clip_statistics(captions, role).items()}
        found |= caption_statistics(captions, self.references)
        if self.training:
            found["novelty"] = mean_of(novel(captions, self.training))
        if self.dataset is not None and "scene" in self.dataset.column_names:
            rows = [
                scene_metrics([caption], [scene])
                for caption, scene in zip(captions, self.dataset["scene"], strict=True)
            ]
            found |= {name: mean_of([row[name] for row in rows]) for name in rows[0]}
        return found

    def _clip_statistics(self, captions: list[str], role: str) -> dict[str, Statistic]:
        clip, images = self.clips[role], self.image_embeds[role]
        texts = clip.encode_texts(captions).cpu()
        to_image, to_text = both_ranks(texts, images)
        found = rank_statistics("t2i", to_image) | rank_statistics("i2t", to_text)
        if role in self.neighbours:
            to_image, to_text = neighbour_ranks(texts, images, self.neighbours[role])
            near = rank_statistics("t2i", to_image) | rank_statistics("i2t", to_text)
            found |= {f"neighbours_{name}": near[name] for name in ("t2i_R@1", "t2i_MRR", "i2t_R@1", "i2t_MRR")}
        if self.prompt:
            texts = clip.encode_texts([self.prompt + caption for caption in captions]).cpu()
        rows = torch.tensor([row for row, own in enumerate(self.references) for _ in own])
        references = clip.encode_texts([self.prompt + text for own in self.references for text in own]).cpu()
        found["CLIPScore"] = mean_of(clip_scores(texts, images).numpy())
        found["RefCLIPScore"] = mean_of(ref_clip_scores(texts, images, references, rows).numpy())
        return found


def load(settings: Settings) -> tuple[Dataset, list[list[str]]]:
    """The pictures to measure on, and the captions of the split `train`."""
    if settings.drawn:
        dataset = emoji_scenes(settings.split, settings.test_size or 1000, settings.scenes_seed)
        return dataset, emoji_scenes("train", 4000, settings.scenes_seed)["captions"][:]
    splits = settings.load()
    if settings.split not in splits:
        raise ValueError(f"{settings.dataset} has no split {settings.split!r}; it has {', '.join(splits)}.")
    dataset = splits[settings.split]
    if settings.test_size is not None:
        dataset = dataset.select(range(min(settings.test_size, len(dataset))))
    return dataset, splits["train"]["captions"][:] if settings.split != "train" else []


def collect(settings: Settings, tests: TestSet) -> dict[str, list[str]]:
    """The captions of each system, in the order of the test set."""
    systems: dict[str, list[str]] = {}
    for source in settings.model:
        assert tests.dataset is not None
        captioner = Captioner(shipped(source) if (SHIPPED / source).is_dir() else source)
        said = captioner(tests.dataset["image"], batch_size=settings.batch_size, progress=True)
        add(systems, source, [str(caption) for caption in said])
    for file in settings.captions:
        found = read_coco_results(file)
        missing = [image_id for image_id in tests.image_ids if image_id not in found]
        if missing:
            raise ValueError(
                f"{file}: {len(missing)} of the {len(tests.image_ids)} images of the test set have no caption, the "
                f"first with image_id {missing[0]}."
            )
        if left := len(found) - len(tests.image_ids):
            logger.warning("%s: %d captions of images that are not in the test set are left out", file, left)
        add(systems, Path(file).stem, [found[image_id] for image_id in tests.image_ids])
    return systems


def add(systems: dict[str, list[str]], source: str, captions: list[str]) -> None:
    """Add a system under the shortest end of its path that no other has."""
    parts = [part for part in Path(source).parts if part != "/"]
    names = ["-".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    name = next((name for name in names if name not in systems), None)
    if name is None:
        raise ValueError(f"{source} is given twice.")
    systems[name] = captions


def java_figures(names: Sequence[str], captions: list[str], tests: TestSet) -> dict[str, tuple[float, Statistic]]:
    """METEOR and SPICE: the figure, and the mean over images by which the bootstrap knows its spread."""
    figures = {}
    for name in names:
        value, each = JAVA[name](captions, tests.references)
        figures[name] = (value, mean_of(np.nan_to_num(each)))
    return figures


def compare(
    values: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Intervals of each system, and of the difference of each pair, for what both have."""
    found: dict[str, dict[str, Any]] = {
        system: {name: interval(value, drawn[system][name])._asdict() for name, value in figures.items()}
        for system, figures in values.items()
    }
    for first, second in combinations(values, 2):
        found[f"{first} - {second}"] = {
            name: difference(
                (values[first][name], drawn[first][name]), (values[second][name], drawn[second][name])
            )._asdict()
            for name in values[first]
            if name in values[second]
        }
    return found


def cell(found: Mapping[str, float], signed: bool = False) -> str:
    """A figure with its interval, as the table has it."""
    sign = "+" if signed else ""
    return f"{found['value']:{sign}.3f} [{found['low']:{sign}.3f}, {found['high']:{sign}.3f}]"


def main() -> None:
    """Caption, measure, compare, write."""
    (settings,) = parse_settings(Settings, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in settings.java_metrics:
        check_java(name)  # better now than after the captioning
    output = Path(settings.output_dir)
    (output / "captions").mkdir(parents=True, exist_ok=True)
    judge = LanguageModel(settings.language_model) if settings.language_model else None
    tests = TestSet(settings)
    images = len(tests.image_ids)
    values: dict[str, dict[str, float]] = {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for system, captions in collect(settings, tests).items():
        write_coco_results(output / "captions" / f"{system}.json", tests.image_ids, captions)
        statistics = tests.statistics(captions)
        if judge is not None:
            statistics["perplexity"] = perplexity(*judge.surprise(captions, settings.batch_size))
        values[system] = {name: value_of(each, images) for name, each in statistics.items()}
        for name, (value, each) in java_figures(settings.java_metrics, captions, tests).items():
            values[system][name], statistics[name] = value, each
        drawn[system] = resample(statistics, images, settings.resamples)
    found = compare(values, drawn)
    written = {
        system: {name: int(value) if name in COUNTS else value for name, value in figures.items()}
        for system, figures in values.items()
    }
    (output / "metrics.json").write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")
    (output / "intervals.json").write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    rows = {name: {system: of[name] for system, of in written.items()} for name in next(iter(written.values()))}
    print(format_table(rows))
    for pair, figures in found.items():
        if pair not in values:
            decided = {name: each for name, each in figures.items() if not each["low"] <= 0 <= each["high"]}
            print(f"\n{pair}: 95 % intervals without 0 (all: intervals.json)")
            width = max(map(len, decided), default=0)
            print("\n".join(f"  {name:<{width}}  {cell(each, True)}" for name, each in decided.items()) or "  none")
    print(f"{images} images: {output / 'metrics.json'}, intervals.json, captions/")


if __name__ == "__main__":
    with clear_errors():
        main()
