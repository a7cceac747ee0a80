"""Train a small CLIP from nothing, or fine-tune a published one, on captioned pictures.

    python recipes/train_clip.py recipes/configs/scorer.yaml                          # on emoji scenes
    python recipes/train_clip.py --model ViT-B-32:openai --dataset captions.json --image_root images --lr 1e-5

With `hard_negatives` each caption is also compared with a false or broken version of itself, which teaches the model
what is true. The result is a folder that open_clip loads as `local-dir:FOLDER`, and `hf_distinct.ClipScorer(FOLDER)`
too. It is saved after each evaluation, and after the current step when a signal stops the training. A loss, gradient
or weight that is NaN or infinite ends the training, and that model is not saved.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import open_clip.transform
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_distinct import run_lock
from hf_distinct.arguments import clear_errors, parse_settings, unused_settings
from hf_distinct.clip_training import CaptionedImages, evaluate, loss_of
from hf_distinct.data.emoji_scenes import CAPTION_STYLES, emoji_scenes, nouns
from hf_distinct.data.negatives import KINDS
from hf_distinct.data.parts import written_together
from hf_distinct.data.prepared import readable
from hf_distinct.data.settings import DatasetSettings
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.finite import step_problems, weight_problems
from hf_distinct.interruption import Interruption, leave
from hf_distinct.logs import show_logs
from hf_distinct.problems import refuse
from hf_distinct.results import output_problems, write_json
from hf_distinct.room import named_errors
from hf_distinct.scorer import ClipScorer, save_open_clip

VISION = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
NEW_RATE, TUNING_RATE = 2e-3, 1e-5
logger = logging.getLogger("train_clip")


@dataclass
class Settings(DatasetSettings):
    """What to train, on what, for how long."""

    output_dir: str = field(default="outputs/clip", metadata={"help": "Folder for the model."})
    model: str | None = field(
        default=None,
        metadata={"help": "CLIP to fine-tune: NAME:TAG, a folder, or the name of a shipped one. Default: a new one."},
    )
    vision_cfg: str = field(
        default=json.dumps(VISION), metadata={"help": "Image tower of a new model, as JSON in open_clip's form."}
    )
    spread_positions: bool = field(
        default=False, metadata={"help": "Start the heads of an attention pool at different places of the image."}
    )
    embed_dim: int = field(default=128, metadata={"help": "Width of the embeddings of a new model."})
    train_size: int = field(default=60000, metadata={"help": "Number of emoji scenes to train on."})
    caption_style: str = field(
        default="detailed",
        metadata={
            "help": "Style of emoji captions: as people write, more detailed, or with all six facts.",
            "choices": list(CAPTION_STYLES),
        },
    )
    curriculum_steps: int = field(
        default=0,
        metadata={
            "help": "Number of first steps that use scenes of few nouns only, from which relations are learned sooner."
        },
    )
    curriculum_nouns: int = field(
        default=10, metadata={"help": "Number of nouns, the most frequent ones, in the first --curriculum_steps."}
    )
    hard_negatives: bool = field(default=False, metadata={"help": "Train against false and broken captions."})
    negative_weight: float = field(default=2.0, metadata={"help": "Weight of the hard-negative loss."})
    kind_weights: list[float] = field(
        default_factory=lambda: [8.0, 4.0, 2.0, 1.5, 2.0, 1.5],
        metadata={"help": f"How often each kind of negative is drawn: {', '.join(KINDS)}."},
    )
    drill: float = field(
        default=0.5,
        metadata={"help": "Fraction of images whose caption is chosen to fit the scheduled kind of hard negative."},
    )
    max_steps: int = field(default=1200, metadata={"help": "Number of optimiser steps."})
    batch_size: int = field(default=128, metadata={"help": "Number of images per step."})
    lr: float | None = field(
        default=None,
        metadata={
            "help": f"Peak learning rate (linear warm-up, cosine decay). Default: {NEW_RATE} for a new model, "
            f"{TUNING_RATE} for --model."
        },
    )
    weight_decay: float = field(default=0.02, metadata={"help": "AdamW's weight decay."})
    eval_steps: int = field(default=300, metadata={"help": "Number of steps between evaluations."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order and, for emoji scenes, the data."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())
        if self.lr is None:
            self.lr = NEW_RATE if self.model is None else TUNING_RATE

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that has no effect with the others, or whose value is not possible."""
        yield from output_problems(self.output_dir, {"model": self.model})
        if self.model is not None:
            yield from unused_settings(self, ("vision_cfg", "embed_dim"), "with --model: it belongs to a new model")
        if not self.hard_negatives:
            parts = ("negative_weight", "kind_weights", "drill")
            yield from unused_settings(self, parts, "without --hard_negatives")
        if not self.curriculum_steps:
            yield from unused_settings(self, ("curriculum_nouns",), "without --curriculum_steps")
        if self.curriculum_steps > self.max_steps:
            yield f"curriculum_steps={self.curriculum_steps} should be at most max_steps={self.max_steps}."
        if len(self.kind_weights) != len(KINDS) or min(self.kind_weights) < 0 or not any(self.kind_weights):
            yield (
                f"kind_weights should be {len(KINDS)} numbers, none negative and not all 0, for {', '.join(KINDS)}; "
                f"found {self.kind_weights}."
            )
        if not 0 <= self.drill <= 1:
            yield f"drill={self.drill} should be a fraction from 0 to 1."
        for name in ("train_size", "embed_dim", "curriculum_nouns", "max_steps", "eval_steps"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} should be at least 1."
        if self.batch_size < 2:
            yield f"batch_size={self.batch_size} should be at least 2: each image is compared with the others."
        if self.lr is not None and not 0 < self.lr < math.inf:
            yield f"lr={self.lr} should be a positive number."


def new_model(settings: Settings, captions: list[str]) -> tuple[Any, dict, dict, Callable, Any]:
    """A small CLIP with a word-level vocabulary."""
    vision = json.loads(settings.vision_cfg)
    tokenizer = build_word_tokenizer(captions, max_length=24)
    text: dict[str, Any] = {"context_length": 24, "vocab_size": len(tokenizer), "width": 128, "heads": 4, "layers": 2}
    text["hf_tokenizer_name"] = "word-level"  # read from the model's own folder
    model_cfg = {"embed_dim": settings.embed_dim, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**model_cfg)
    preprocess = open_clip.transform.PreprocessCfg(size=vision["image_size"], mean=(0.5,) * 3, std=(0.25,) * 3)
    transform = open_clip.transform.image_transform_v2(preprocess, is_train=False)
    with TemporaryDirectory() as folder:  # output_dir may hold a good model until this one is saved
        tokenizer.save_pretrained(folder)
        tokenize = open_clip.tokenizer.HFTokenizer(folder, context_length=24)
    keep = ("size", "mean", "std", "interpolation", "resize_mode")
    return model, model_cfg, {k: getattr(preprocess, k) for k in keep}, transform, tokenize


def tell_places_apart(model: Any, scale: float = 10.0) -> None:
    """Start the positions of an attention pool large enough for its heads to look at different places.

    At the usual scale every head begins by averaging over the image, and what is left or right of what is learned only
    after a long plateau, if at all.

    Raises:
        ValueError: the image tower has no attention pool.
    """
    ends = ("attnpool.positional_embedding", "pool.pos_embed")
    found = [parameter for name, parameter in model.visual.named_parameters() if name.endswith(ends)]
    if not found:
        raise ValueError("--spread_positions has no effect on an image tower without an attention pool: leave it out.")
    for parameter in found:
        parameter.data.mul_(scale)


def published_model(settings: Settings) -> tuple[Any, dict, dict, Callable, Any]:
    """A trained CLIP to go on from."""
    assert settings.model is not None
    scorer = ClipScorer(settings.model)
    model = scorer.model.requires_grad_(True)
    keep = ("size", "mean", "std", "interpolation", "resize_mode")
    preprocess_cfg = {key: value for key, value in model.visual.preprocess_cfg.items() if key in keep}
    return model, scorer.model_cfg, preprocess_cfg, scorer.transform, scorer.tokenizer


def stages(train: Dataset, settings: Settings) -> list[tuple[Dataset, int]]:
    """What to train on and until which step."""
    whole = (train, settings.max_steps)
    if not settings.curriculum_steps:
        return [whole]
    few = set(list(nouns())[: settings.curriculum_nouns])
    first = train.filter(lambda scene: few.issuperset(scene["nouns"]), input_columns="scene")
    return [(first, settings.curriculum_steps), whole]


def batches(train: Dataset, transform: Callable, settings: Settings) -> Iterator[tuple[Tensor, list[str], list[str]]]:
    """Batches of every stage, epoch after epoch; ``max_steps`` in all."""
    step = 0
    for dataset, until in stages(train, settings):
        kind_weights = settings.kind_weights if settings.hard_negatives else None
        rows = CaptionedImages(dataset, transform, kind_weights, settings.drill)
        if len(rows) < settings.batch_size:
            raise ValueError(f"{len(rows)} images do not fill a batch of {settings.batch_size}: lower --batch_size.")
        loader = torch.utils.data.DataLoader(rows, batch_size=settings.batch_size, shuffle=True, drop_last=True)
        while step < until:
            for batch in itertools.islice(loader, until - step):
                yield batch
                step += 1


def load_data(settings: Settings) -> tuple[Dataset, Dataset]:
    """What to train on, and what to measure on; pictures are decoded when they are needed."""
    if settings.drawn:
        shares = CAPTION_STYLES[settings.caption_style]
        train = emoji_scenes("train", settings.train_size, 100 + settings.seed, 8, shares)
        return train, emoji_scenes("validation", 1000, 100 + settings.seed)
    splits = settings.load().cast_column("image", ImageFeature(decode=False))
    train, validation = splits["train"], splits["validation"]
    validation = validation.select(range(min(1000, len(validation))))
    return train, readable(validation, "the validation split", settings.strict)


def end_diverged(problems: Iterable[str], step: int, settings: Settings) -> None:
    """Raise a ValueError for the first problem that would spoil the model."""
    for problem in problems:
        raise ValueError(
            f"Step {step}: {problem} The training has diverged and ends here, and this model is not saved. Lower --lr "
            f"(now {settings.lr:g}); {settings.output_dir} has what was saved before, if anything was."
        )


def save(model: Any, tokenize: Any, settings: Settings, model_cfg: dict, preprocess_cfg: dict) -> None:
    """Write all that open_clip loads; the model before it stays until this one is whole."""
    with named_errors(settings.output_dir), written_together(Path(settings.output_dir)) as unfinished:
        if hasattr(tokenize, "save_pretrained"):  # the config names its files, which must be there before
            tokenize.save_pretrained(unfinished)
        save_open_clip(model, unfinished, model_cfg, preprocess_cfg)


def train_model(
    model: Any, train: Dataset, settings: Settings, transform: Callable, tokenize: Any, measure: Callable[[int], None]
) -> tuple[int, int]:
    """Take all steps; returns the number of the last one, and the signal that ended the training at it (0: none).

    Args:
        model: an open_clip model, on its device.
        train: the captioned pictures.
        settings: those of the command line.
        transform: makes pixels of a picture.
        tokenize: makes token ids of captions.
        measure: is called with the step after each ``eval_steps`` and at the end; evaluates and saves.

    Raises:
        ValueError: the training has diverged.
    """
    assert settings.lr is not None
    device = model.logit_scale.device
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embedding" not in n)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    warm_up = min(100, settings.max_steps // 10)

    def schedule(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(settings.max_steps - warm_up, 1)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    bar = tqdm(total=settings.max_steps, desc="training CLIP")
    interruption = Interruption()
    with interruption.watched():
        for step, (pixels, captions, negatives) in enumerate(batches(train, transform, settings), start=1):
            has_negative = torch.tensor([bool(text) for text in negatives])
            token_ids = tokenize([*captions, *(text for text in negatives if text)]).to(device)
            pixels = pixels.to(device, memory_format=torch.channels_last)
            loss = loss_of(model, pixels, token_ids, has_negative, settings.negative_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            end_diverged(step_problems(loss, model), step, settings)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.1f}")
            if interruption.asked:
                return step, interruption.asked
            if step % settings.eval_steps == 0 or step == settings.max_steps:
                measure(step)
    return step, 0


def main() -> None:
    """Train and save."""
    (settings,) = parse_settings(Settings, description=__doc__)
    show_logs("train_clip")
    run_lock.claim(settings.output_dir)
    torch.manual_seed(settings.seed)
    train, validation = load_data(settings)
    if settings.model is None:
        captions = [caption for row in train["captions"] for caption in row]
        model, model_cfg, preprocess_cfg, transform, tokenize = new_model(settings, captions)
    else:
        model, model_cfg, preprocess_cfg, transform, tokenize = published_model(settings)
    if settings.spread_positions:
        tell_places_apart(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=torch.channels_last).train()
    metrics: dict[str, float] = {}

    def keep(step: int) -> None:
        end_diverged(weight_problems(model, torch.float16), step, settings)  # in which they are saved
        save(model, tokenize, settings, model_cfg, preprocess_cfg)

    def measure(step: int) -> None:
        metrics.update(evaluate(model, validation, transform, tokenize))
        logger.info("step %d: %s", step, ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        keep(step)

    step, asked = train_model(model, train, settings, transform, tokenize, measure)
    if asked:
        keep(step)
        logger.warning(
            "stopped by %s after step %d of %d: %s has the model of this step. To train on from its weights, name it "
            "with --model, and another --output_dir.",
            signal.Signals(asked).name, step, settings.max_steps, settings.output_dir,
        )  # fmt: skip
        leave(asked)
    report = {"steps": step, "logit_scale": model.logit_scale.exp().item(), **metrics}
    write_json(Path(settings.output_dir) / "metrics.json", report)
    ClipScorer(settings.output_dir)  # it loads as others will load it


if __name__ == "__main__":
    with clear_errors():
        main()
