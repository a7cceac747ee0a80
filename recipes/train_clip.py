"""Train a CLIP that serves as scorer or judge: a small new one, one of pretrained towers, or a published one.

    hf-distinct train-clip scorer.yaml                                              # a small CLIP of emoji scenes
    hf-distinct train-clip flickr8k/scorer.yaml --dataset dataset_flickr8k.json     # pretrained towers
    hf-distinct train-clip --model ViT-B-32:openai --dataset captions.json --image_root images   # fine-tuning

The recipe writes to --output_dir a model that open_clip loads as `local-dir:OUTPUT_DIR` and hf_distinct as
`ClipScorer(OUTPUT_DIR)`, with its figures in metrics.json. It saves the model after each evaluation; with `--keep_best
true` only if it is the best so far.

Set `--hard_negatives true` to train against false and broken versions of each caption, from which the model learns
what is true of a picture. Set `--resume_from_checkpoint true` to resume a run that was stopped or killed. If a loss,
gradient or weight becomes NaN or infinite, the training ends with an error and does not save that model.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import Image as ImageFeature

from hf_distinct.data.emoji.captions import CAPTION_STYLES
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.scenes import nouns
from hf_distinct.data.prepared import readable
from hf_distinct.data.tower_features import CaptionTokens, tower_features
from hf_distinct.files import checkpoints, run_lock
from hf_distinct.files.parts import this_process
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small, unused_settings
from hf_distinct.runs.dataset_settings import CLIP_FORMS, HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import output_problems, write_json
from hf_distinct.text.problems import refuse
from hf_distinct.training.clip_building import (
    FrozenText,
    TrainedClip,
    clip_of_towers,
    published_clip,
    read_augmentation,
    small_clip,
    split_image_tower,
    tell_places_apart,
)
from hf_distinct.training.clip_trainer import ALWAYS, ClipTrainer, Schedule, join_processes
from hf_distinct.training.clip_training import EMOJI_RULES, ENGLISH_RULES, CaptionedImages, Measure, NegativeRules
from hf_distinct.training.interruption import leave
from hf_distinct.training.metering import peak_of_process

VISION = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
NEW_RATE, TUNING_RATE = 2e-3, 1e-5
LEAST = {
    "train_size": 1, "embed_dim": 1, "curriculum_nouns": 1, "max_steps": 1, "eval_steps": 1, "batch_size": 2,
    "cached_views": 0, "captions_per_image": 1, "patience": 0, "num_workers": 0, "image_thawed_stages": 0,
}  # fmt: skip
MEASURED = 1000  # pictures of a split, at most
logger = logging.getLogger("train_clip")


@dataclass
class Settings(DatasetSettings):
    """Which CLIP to train, on which pictures, and for how long."""

    output_dir: str = field(default="outputs/clip", metadata={"help": "Folder to write the model to."})
    model: str | None = field(default=None, metadata={"help": f"CLIP to fine-tune: {CLIP_FORMS}. Default: a new one."})
    vision_cfg: str = field(
        default=json.dumps(VISION), metadata={"help": "Image tower of a new model: open_clip's vision_cfg as JSON."}
    )
    image_tower: str | None = field(
        default=None, metadata={"help": "Pretrained image tower of a new model: timm's name. Default: --vision_cfg."}
    )
    image_weights: str | None = field(
        default=None,
        metadata={
            "help": "Weights of --image_tower: a .pth or .safetensors file, or package:NAME/FILE for a file of an "
            "installed package. Default: timm downloads its own."
        },
    )
    text_tower: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained text tower of a new model: a transformers encoder such as all-MiniLM-L6-v2, by "
            "folder, Hub id or package:NAME/FOLDER. Default: a small new one with the words of the captions."
        },
    )
    projection: str = field(
        default="linear", metadata={"help": "Projection on top of a pretrained tower.", "choices": ["linear", "mlp"]}
    )
    image_dropout: float = field(default=0.0, metadata={"help": "Dropout on the features of --image_tower."})
    image_frozen_steps: int = field(
        default=0, metadata={"help": "Number of first steps in which the image tower is frozen; -1 freezes it always."}
    )
    image_thawed_stages: int = field(
        default=0, metadata={"help": "Number of last stages of the image tower that train while the rest is frozen."}
    )
    text_frozen_steps: int = field(
        default=0, metadata={"help": "Number of first steps in which the text tower is frozen; -1 freezes it always."}
    )
    tower_lr: float = field(
        default=TUNING_RATE, metadata={"help": "Peak learning rate of pretrained towers while they are not frozen."}
    )
    mirror: bool = field(
        default=False, metadata={"help": "Mirror half of the pictures, except beside captions with left or right."}
    )
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "Random crops and colours of the training pictures: open_clip's aug_cfg as JSON, such as "
            "'{\"scale\": [0.5, 1]}'. Default: none."
        },
    )
    cached_views: int = field(
        default=0,
        metadata={
            "help": "Number of views of each picture whose image features are computed once and cached: 1 is the "
            "picture, 2 adds its mirror image, more add random views of --augmentation. 0 caches nothing."
        },
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Folder for cached features. Default: OUTPUT_DIR/features."}
    )
    cached_captions: bool = field(
        default=False,
        metadata={"help": "Compute the text features of each caption once, for the time when --text_tower is frozen."},
    )
    captions_per_image: int = field(default=1, metadata={"help": HELP["captions_per_image"]})
    spread_positions: bool = field(
        default=False, metadata={"help": "Start the heads of an attention pool at different places of the image."}
    )
    embed_dim: int = field(default=128, metadata={"help": "Dimension of the embeddings of a new model."})
    train_size: int = field(default=60000, metadata={"help": HELP["train_size"]})
    caption_style: str = field(
        default="detailed", metadata={"help": HELP["caption_style"], "choices": list(CAPTION_STYLES)}
    )
    curriculum_steps: int = field(
        default=0, metadata={"help": "Number of first steps that use only emoji scenes of the --curriculum_nouns."}
    )
    curriculum_nouns: int = field(
        default=10, metadata={"help": "Number of nouns, the most frequent ones, for the --curriculum_steps."}
    )
    hard_negatives: bool = field(
        default=False, metadata={"help": "Train against false and broken versions of each caption too."}
    )
    negative_weight: float = field(default=2.0, metadata={"help": "Weight of the loss on hard negatives."})
    kind_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "How often each kind of hard negative is drawn, as one number for each kind. On emoji scenes: "
            f"{', '.join(EMOJI_RULES.kinds)}. Default: {' '.join(map(str, EMOJI_RULES.weights))}. On photographs: "
            f"{', '.join(ENGLISH_RULES.kinds)}. Default: {' '.join(map(str, ENGLISH_RULES.weights))}."
        },
    )
    drill: float = field(
        default=0.5,
        metadata={"help": "Fraction of images whose caption is chosen to fit the scheduled kind of hard negative."},
    )
    max_steps: int = field(default=1200, metadata={"help": "Number of optimiser steps."})
    batch_size: int = field(
        default=128, metadata={"help": "Number of images per step, over all processes of the run together."}
    )
    lr: float | None = field(
        default=None,
        metadata={
            "help": f"Peak learning rate of linear warm-up and cosine decay. Default: {NEW_RATE} for a new model, "
            f"{TUNING_RATE} with --model."
        },
    )
    weight_decay: float = field(default=0.02, metadata={"help": HELP["weight_decay"]})
    eval_steps: int = field(default=300, metadata={"help": "Number of steps between two evaluations."})
    keep_best: bool = field(
        default=False, metadata={"help": "Keep the model with the best mean R@1 on validation, not the last one."}
    )
    patience: int = field(
        default=0,
        metadata={"help": "Number of evaluations without a better model after which the training stops. 0: never."},
    )
    num_workers: int = field(default=0, metadata={"help": HELP["num_workers"]})
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 where it is safe; weights stay float32."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to resume: a folder, or `true` for the newest in --output_dir. Default: a new run."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the weights, the data order and the emoji scenes."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())
        if self.lr is None:
            self.lr = NEW_RATE if self.model is None else TUNING_RATE

    @property
    def rules(self) -> NegativeRules:
        """The rules by which hard negatives are made of these captions."""
        return EMOJI_RULES if self.drawn else ENGLISH_RULES

    def last_frozen_step(self, frozen_steps: int) -> int:
        """Return the step until which a tower with this setting is frozen."""
        return self.max_steps if frozen_steps == ALWAYS else frozen_steps

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        yield from output_problems(self.output_dir, {"model": self.model})
        yield from self._unused()
        yield from too_small(self, **LEAST)
        if self.curriculum_steps > self.max_steps:
            yield f"curriculum_steps={self.curriculum_steps} must be at most max_steps={self.max_steps}."
        weights, kinds = self.kind_weights, self.rules.kinds
        if weights is not None and (len(weights) != len(kinds) or min(weights) < 0 or not any(weights)):
            yield (
                f"kind_weights={weights} must be {len(kinds)} numbers, none negative and not all 0: one for each of "
                f"{', '.join(kinds)}."
            )
        for name in ("drill", "image_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name}={getattr(self, name)} must be a fraction from 0 to 1."
        for name in ("image_frozen_steps", "text_frozen_steps"):
            if not ALWAYS <= getattr(self, name) <= self.max_steps:
                yield f"{name}={getattr(self, name)} must be from 0 to max_steps={self.max_steps}, or -1: always."
        if self.cached_views and not self.image_frozen_steps:
            yield "--cached_views needs a frozen image tower: set --image_frozen_steps, to -1 for all steps."
        if self.cached_captions and (not self.text_frozen_steps or self.text_tower is None):
            yield "--cached_captions needs a frozen --text_tower: set --text_frozen_steps, to -1 for all steps."
        for name in ("cached_views", "cached_captions"):
            if getattr(self, name) and self.curriculum_steps:
                yield f"--{name} and --curriculum_steps do not work together: leave one of them out."
        for name in ("lr", "tower_lr"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                yield f"{name}={getattr(self, name)} must be a positive number."
        try:
            read_augmentation(self.augmentation)
        except (ValueError, TypeError) as error:
            yield f"augmentation={self.augmentation} is not open_clip's aug_cfg as JSON: {error}."

    def _unused(self) -> Iterator[str]:
        if self.model is not None:
            new = ("vision_cfg", "embed_dim", "image_tower", "text_tower")
            yield from unused_settings(self, new, "with --model: it is for a new model")
        if self.image_tower is not None:
            yield from unused_settings(self, ("vision_cfg",), "with --image_tower")
        else:
            of_towers = ("image_weights", "text_tower", "projection", "image_dropout", "tower_lr")
            yield from unused_settings(self, of_towers, "without --image_tower")
        if not self.hard_negatives:
            yield from unused_settings(self, ("negative_weight", "kind_weights", "drill"), "without --hard_negatives")
        if not self.curriculum_steps:
            yield from unused_settings(self, ("curriculum_nouns",), "without --curriculum_steps")
        if not self.image_frozen_steps:
            yield from unused_settings(self, ("image_thawed_stages",), "without --image_frozen_steps")
        if not self.cached_views and not self.cached_captions:
            yield from unused_settings(self, ("cache_dir",), "without --cached_views or --cached_captions")
        if self.cached_views and self.image_frozen_steps == ALWAYS and self.cached_views <= 1 + self.mirror:
            unseen = ("augmentation",) if self.cached_views > 1 else ("augmentation", "mirror")
            yield from unused_settings(self, unseen, f"with --cached_views {self.cached_views}: cache more views")
        if not self.keep_best:
            yield from unused_settings(self, ("patience",), "without --keep_best: the best model would be lost")


def make_model(settings: Settings, train: Dataset) -> TrainedClip:
    """Build or load the CLIP to train."""
    if settings.model is not None:
        return published_clip(settings.model)
    captions = [caption for row in train["captions"] for caption in row]
    if settings.image_tower is None:
        return small_clip(json.loads(settings.vision_cfg), settings.embed_dim, captions)
    return clip_of_towers(
        settings.image_tower, settings.image_weights, settings.text_tower, settings.embed_dim, settings.projection,
        settings.image_dropout, captions,
    )  # fmt: skip


def stages(train: Dataset, clip: TrainedClip, settings: Settings) -> list[tuple[CaptionedImages, int]]:
    """List the training sets, each with the step until which it is used."""
    changes, rules = read_augmentation(settings.augmentation), settings.rules if settings.hard_negatives else None
    how = (rules, settings.kind_weights or settings.rules.weights, settings.drill)
    features, caption_features, image_end, text_end = None, None, 0, 0
    if settings.cached_views:
        cached_views = clip.views(changes, settings.mirror, settings.cached_views)
        train, features = features_of(train, clip, settings, cached_views)
        image_end = settings.last_frozen_step(settings.image_frozen_steps)
    if settings.cached_captions:
        caption_features = caption_features_of(train, clip, settings)
        text_end = settings.last_frozen_step(settings.text_frozen_steps)
    found = []
    for end in sorted({image_end, text_end, settings.max_steps} - {0}):
        views, known = clip.views(changes, settings.mirror), None
        if image_end >= end:
            views, known = cached_views, features
        texts = caption_features if text_end >= end else None
        found.append((CaptionedImages(train, views, *how, known, settings.captions_per_image, texts), end))
    if settings.curriculum_steps:
        few = set(list(nouns())[: settings.curriculum_nouns])
        first = train.filter(lambda scene: few.issuperset(scene["nouns"]), input_columns="scene")
        views = clip.views(changes, settings.mirror)
        easy = CaptionedImages(first, views, *how, captions_per_image=settings.captions_per_image)
        found.insert(0, (easy, settings.curriculum_steps))
    return found


def features_of(rows: Dataset, clip: TrainedClip, settings: Settings, views: Any) -> tuple[Dataset, torch.Tensor]:
    """Compute or load the features that the frozen image tower gives for each view of each picture."""
    tower, _ = split_image_tower(clip.model, settings.image_thawed_stages)
    folder, workers = settings.cache_dir or f"{settings.output_dir}/features", settings.num_workers
    return tower_features(rows, tower.eval(), views, folder, settings.seed, workers, strict=settings.strict)


def caption_features_of(rows: Dataset, clip: TrainedClip, settings: Settings) -> torch.Tensor:
    """Compute or load the features that the frozen text tower gives for each caption."""
    tokens = CaptionTokens(clip.tokenize, max(map(len, rows["captions"])))
    folder = settings.cache_dir or f"{settings.output_dir}/features"
    return tower_features(rows, FrozenText(clip.model).eval(), tokens, folder, batch_size=128)[1]


def measure_of(rows: Dataset, name: str, clip: TrainedClip, settings: Settings, cached: bool) -> Measure:
    """Prepare to measure a split, from ``cached`` features of towers that are always frozen or from the pictures."""
    rows, features, caption_features = rows.select(range(min(MEASURED, len(rows)))), None, None
    if cached and settings.cached_views and settings.image_frozen_steps == ALWAYS:
        rows, features = features_of(rows, clip, settings, clip.views(count=1))
    elif not settings.drawn:
        rows = readable(rows, name, settings.strict)
    if cached and settings.cached_captions and settings.text_frozen_steps == ALWAYS:
        caption_features = caption_features_of(rows, clip, settings)
    stages = settings.image_thawed_stages
    return Measure(rows, clip.transform(), clip.tokenize, settings.rules, features, stages, caption_features)


def load_data(settings: Settings) -> tuple[Dataset, Dataset, Dataset | None]:
    """Load the splits to train on, to choose by, and to report; pictures are decoded when they are needed."""
    if settings.drawn:
        shares = CAPTION_STYLES[settings.caption_style]
        train = emoji_scenes("train", settings.train_size, 100 + settings.seed, 8, shares)
        return train, emoji_scenes("validation", 1000, 100 + settings.seed), None
    splits = settings.load().cast_column("image", ImageFeature(decode=False))
    return splits["train"], splits["validation"], splits["test"]


def schedule_of(settings: Settings) -> Schedule:
    """Collect the settings of the training."""
    assert settings.lr is not None
    given = {"image": settings.image_tower, "text": settings.text_tower}
    return Schedule(
        settings.max_steps, settings.batch_size, settings.lr, settings.tower_lr, settings.weight_decay,
        settings.eval_steps, settings.negative_weight, settings.image_frozen_steps, settings.image_thawed_stages,
        settings.text_frozen_steps, [name for name, tower in given.items() if tower], settings.patience,
        settings.num_workers, settings.bf16, settings.seed,
    )  # fmt: skip


def main() -> None:
    """Train, save, measure."""
    (settings,) = parse_settings(Settings, description=__doc__)
    show_logs("train_clip")
    device = join_processes(settings.batch_size)
    rank, processes = this_process()
    if rank == 0:
        run_lock.claim(settings.output_dir)
    torch.manual_seed(settings.seed)
    train, validation, test = load_data(settings)
    clip = make_model(settings, train)
    if settings.spread_positions:
        tell_places_apart(clip.model)
    clip.model.to(device, memory_format=torch.channels_last).train()
    measure = measure_of(validation, "the validation split", clip, settings, cached=True)
    metrics: dict[str, float] = {}

    def evaluate(step: int) -> float:
        metrics.update(measure(clip.model, kinds=settings.drawn))  # of photographs at the end: kinds take a while
        logger.info("step %d: %s", step, ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        return metrics["t2i_R@1"] + metrics["i2t_R@1"]

    data = stages(train, clip, settings)
    trainer = ClipTrainer(
        clip, schedule_of(settings), data, settings.output_dir, evaluate, lambda: clip.save(settings.output_dir),
        settings.keep_best,
    )  # fmt: skip
    if checkpoint := checkpoints.choose(settings.resume_from_checkpoint, settings.output_dir):
        trainer.resume(checkpoint)
    if processes > 1:
        torch.manual_seed(settings.seed + rank)
    start, asked = time.monotonic(), trainer.train()
    if asked:
        tell_stopped(asked, trainer, settings)
    minutes, place = (time.monotonic() - start) / 60, trainer.place
    logger.info("Training took %.1f minutes and at most %.1f GiB of memory.", minutes, peak_of_process(device))
    if rank == 0:
        report: dict[str, Any] = {"steps": place.step, "logit_scale": clip.model.logit_scale.exp().item(), **metrics}
        kept = published_clip(settings.output_dir)  # as others will load it
        if test is not None:
            report |= {"best_step": place.best_step, "logit_scale": kept.model.logit_scale.exp().item()}
            report |= final_report(kept, validation, test, settings)
        write_json(Path(settings.output_dir) / "metrics.json", report)
    trainer.remove_checkpoints()


def final_report(kept: TrainedClip, validation: Dataset, test: Dataset, settings: Settings) -> dict[str, Any]:
    """Measure the model that was kept, with the figures of each kind of negative."""
    found = {}
    for split, rows in {"validation": validation, "test": test}.items():
        found[split] = measure_of(rows, f"the {split} split", kept, settings, cached=False)(kept.model)
        logger.info("%s: %s", split, ", ".join(f"{name} {value:.3f}" for name, value in found[split].items()))
    return found["validation"] | {"test": found["test"]}


def tell_stopped(asked: int, trainer: ClipTrainer, settings: Settings) -> None:
    """Say how to resume, and end the process as the signal would have done."""
    if trainer.rank == 0:
        if not settings.keep_best:
            trainer.keep()
        logger.warning(
            "stopped by %s after step %d of %d. To resume, run the same command with --resume_from_checkpoint true.",
            signal.Signals(asked).name, trainer.place.step, settings.max_steps,
        )  # fmt: skip
    leave(asked)


if __name__ == "__main__":
    with clear_errors():
        main()
