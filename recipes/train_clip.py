"""Train a small CLIP from nothing, or fine-tune a published one, on captioned pictures.

    python recipes/train_clip.py recipes/configs/scorer.yaml                          # on emoji scenes
    python recipes/train_clip.py --model ViT-B-32:openai --dataset captions.json --image_root images --lr 1e-5

With `hard_negatives` each caption also stands against a false or broken twin of itself, which teaches the model what a
lie is. The result is a folder that open_clip loads as `local-dir:FOLDER`, and `hf_distinct.ClipScorer(FOLDER)` too.
It is saved after each evaluation, and after the current step when a signal asks to stop. A loss, gradient or weight
that is NaN or infinite ends the training unsaved.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import open_clip.transform
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_distinct import run_lock
from hf_distinct.arguments import clear_errors, parse_settings, unused_settings
from hf_distinct.data.emoji_scenes import (
    CAPTION_STYLES,
    Scene,
    emoji_scenes,
    full_caption,
    judge_caption,
    nouns,
)
from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.negatives import KINDS, hard_negative
from hf_distinct.data.prepared import readable
from hf_distinct.data.settings import DatasetSettings
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.evaluation.retrieval import retrieval_metrics
from hf_distinct.finite import step_problems, weight_problems
from hf_distinct.interruption import Interruption, leave
from hf_distinct.logs import show_logs
from hf_distinct.problems import refuse
from hf_distinct.results import output_problems, write_json
from hf_distinct.scorer import ClipScorer, encode_token_ids, save_open_clip

VISION = {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}
NEW_RATE, TUNING_RATE = 2e-3, 1e-5
TRIES = 20
logger = logging.getLogger("train_clip")


@dataclass
class Settings(DatasetSettings):
    """What to train, on what, for how long."""

    output_dir: str = field(default="outputs/clip", metadata={"help": "Where the model goes."})
    model: str | None = field(
        default=None, metadata={"help": "Fine-tune this CLIP (NAME:TAG, a folder, a shipped one); none: a new one."}
    )
    vision_cfg: str = field(
        default=json.dumps(VISION), metadata={"help": "Image tower of a new model, JSON as open_clip's."}
    )
    spread_positions: bool = field(
        default=False, metadata={"help": "Let the heads of an attention pool start at different places."}
    )
    embed_dim: int = field(default=128, metadata={"help": "Width of the embeddings of a new model."})
    train_size: int = field(default=60000, metadata={"help": "Number of emoji scenes to train on."})
    caption_style: str = field(
        default="detailed",
        metadata={
            "help": "Captions of emoji scenes: as people write, more detailed, or with all six facts.",
            "choices": list(CAPTION_STYLES),
        },
    )
    curriculum_steps: int = field(
        default=0,
        metadata={
            "help": "Number of first steps on scenes of few nouns alone, on which relations are learned sooner."
        },
    )
    curriculum_nouns: int = field(
        default=10, metadata={"help": "Number of nouns in those steps, the most frequent ones."}
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
    max_steps: int = field(default=1200, metadata={"help": "Optimiser steps."})
    batch_size: int = field(default=128, metadata={"help": "Images per step."})
    lr: float | None = field(
        default=None,
        metadata={
            "help": f"Peak learning rate (linear warm-up, cosine decay); none: {NEW_RATE} for a new model, "
            f"{TUNING_RATE} for --model."
        },
    )
    weight_decay: float = field(default=0.02, metadata={"help": "AdamW's weight decay."})
    eval_steps: int = field(default=300, metadata={"help": "Steps between evaluations."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order and, for emoji scenes, the data."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())
        if self.lr is None:
            self.lr = NEW_RATE if self.model is None else TUNING_RATE

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that cannot act beside the others, or has no value that can."""
        yield from output_problems(self.output_dir, {"model": self.model})
        if self.model is not None:
            yield from unused_settings(self, ("vision_cfg", "embed_dim"), "with --model: it is of a new model")
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
            yield f"batch_size={self.batch_size} should be at least 2: images are told from each other."
        if self.lr is not None and not 0 < self.lr < math.inf:
            yield f"lr={self.lr} should be a positive number."


class CaptionedImages(torch.utils.data.Dataset):
    """Rows as (pixels, caption drawn at random, hard negative or empty).

    Few captions can be turned into the lies that are hard to learn. So in the share ``drill`` of the rows the kind of
    lie is drawn before the caption; in the others the caption comes first, short and vague ones too.
    """

    def __init__(self, dataset: Dataset, transform: Callable, settings: Settings):
        self.dataset, self.transform, self.settings = dataset, transform, settings

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, str, str]:
        rng = random.Random(int(torch.randint(2**62, ()).item()))
        row, image = self.readable(index, rng)
        caption, negative = self.draw(row, rng) if self.settings.hard_negatives else (rng.choice(row["captions"]), "")
        return self.transform(image), caption, negative

    def readable(self, index: int, rng: random.Random) -> tuple[dict[str, Any], Image.Image]:
        """A row and its picture; where that cannot be decoded, those of another row.

        Raises:
            ValueError: none of `TRIES` pictures can be decoded.
        """
        for _ in range(TRIES):
            row = self.dataset[index]
            try:
                return row, decode_image(row["image"])
            except ImageError as error:
                reason = f"image {row['image_id']!r} cannot be trained on: {error}"
                logger.warning("%s. Another one takes its place.", reason)
                index = rng.randrange(len(self.dataset))
        raise ValueError(f"{TRIES} pictures one after the other cannot be decoded, the last one is {reason}")

    def draw(self, row: dict[str, Any], rng: random.Random) -> tuple[str, str]:
        """One of the row's captions and a negative of it, empty if it offers none."""
        captions, holds = rng.sample(row["captions"], len(row["captions"])), truth_of(row)
        if rng.random() < self.settings.drill:
            kind = rng.choices(KINDS, self.settings.kind_weights)[0]
            for caption in captions:
                if negative := hard_negative(caption, kind, rng, holds):
                    return caption, negative
        offered = [hard_negative(captions[0], kind, rng, holds) or "" for kind in KINDS]
        weights = [w if negative else 0.0 for negative, w in zip(offered, self.settings.kind_weights, strict=True)]
        return captions[0], rng.choices(offered, weights)[0] if any(weights) else ""


def truth_of(row: dict[str, Any]) -> Callable[[str], bool] | None:
    """Where the facts are known, a judge of what holds; a broken sentence holds nothing."""
    if "scene" not in row:
        return None
    scene = Scene.from_dict(row["scene"])
    return lambda text: judge_caption(text, scene).true


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


def loss_of(model: Any, pixels: Tensor, token_ids: Tensor, has_negative: Tensor, weight: float) -> Tensor:
    """Symmetric InfoNCE, plus the log-odds of each caption against its own hard negative.

    Args:
        model: an open_clip model.
        pixels: ``(n, 3, height, width)``.
        token_ids: ``(n + m, context)``: the captions, then the negatives of the rows that have one.
        has_negative: ``(n,)`` bool, m of them True.
        weight: of the hard negatives.
    """
    images = F.normalize(model.encode_image(pixels), dim=-1)
    texts = F.normalize(encode_token_ids(model, token_ids), dim=-1)
    scale = model.logit_scale.exp()
    captions, negatives = texts[: len(images)], texts[len(images) :]
    logits = scale * images @ captions.T
    target = torch.arange(len(images), device=logits.device)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    if len(negatives):
        lies = scale * (images[has_negative] * negatives).sum(-1)
        loss = loss + weight * F.softplus(lies - logits.diagonal()[has_negative]).mean()
    return loss


@torch.no_grad()
def evaluate(model: Any, dataset: Dataset, transform: Callable, tokenize: Callable) -> dict[str, float]:
    """Retrieval with the fullest caption of each image, and how often the truth beats each kind of negative."""
    model.eval()
    device = model.logit_scale.device
    emoji = "scene" in dataset.column_names
    rows = list(dataset)
    captions = [full_caption(Scene.from_dict(r["scene"])) if emoji else max(r["captions"], key=len) for r in rows]
    images = torch.cat(
        [
            F.normalize(
                model.encode_image(torch.stack([transform(decode_image(r["image"])) for r in part]).to(device)), dim=-1
            )
            for part in (rows[i : i + 100] for i in range(0, len(rows), 100))
        ]
    )

    def embed(texts: list[str]) -> Tensor:
        return F.normalize(encode_token_ids(model, tokenize(texts).to(device)), dim=-1)

    texts = embed(captions)
    metrics = {k: v for k, v in retrieval_metrics(texts, images).items() if k in ("t2i_R@1", "i2t_R@1", "t2i_R@5")}
    rng = random.Random(0)
    for kind in KINDS:
        lies = [(i, hard_negative(c, kind, rng, truth_of(rows[i]))) for i, c in enumerate(captions)]
        chosen = [(i, lie) for i, lie in lies if lie]
        if chosen:
            index = torch.tensor([i for i, _ in chosen])
            truth, lie = (texts * images).sum(-1)[index], (embed([t for _, t in chosen]) * images[index]).sum(-1)
            metrics[f"prefers_truth/{kind}"] = float((truth > lie).float().mean())
    model.train()
    return metrics


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
        rows = CaptionedImages(dataset, transform, settings)
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
    """Write all that open_clip loads."""
    if hasattr(tokenize, "save_pretrained"):  # the config names its files, which must be there before
        tokenize.save_pretrained(settings.output_dir)
    save_open_clip(model, settings.output_dir, model_cfg, preprocess_cfg)


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
