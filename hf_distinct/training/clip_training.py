"""Training a CLIP: rows with hard negatives, the loss, and retrieval and hard negatives as measures."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers.utils import logging

from hf_distinct.data.emoji.captions import full_caption
from hf_distinct.data.emoji.judging import judge_caption
from hf_distinct.data.emoji.scenes import Scene
from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.negatives import KINDS, hard_negative
from hf_distinct.evaluation.retrieval import retrieval_metrics
from hf_distinct.scorer import encode_token_ids

logger = logging.get_logger(__name__)

TRIES = 20


class CaptionedImages(torch.utils.data.Dataset):
    """Rows as (pixels, caption drawn at random, hard negative or empty).

    Few captions can be turned into the negatives that are hard to learn. So in a fraction ``drill`` of the rows the
    kind of negative is drawn before the caption; in the others the caption comes first, short and vague ones too.

    Args:
        dataset: ``image``, ``captions``, ``image_id``; emoji scenes also have ``scene``.
        transform: turns an RGB picture into pixels.
        kind_weights: how often each of ``KINDS`` is drawn; None: no hard negatives.
        drill: the fraction.
    """

    def __init__(
        self, dataset: Dataset, transform: Callable, kind_weights: Sequence[float] | None = None, drill: float = 0.0
    ):
        self.dataset, self.transform, self.kind_weights, self.drill = dataset, transform, kind_weights or (), drill

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, str, str]:
        rng = random.Random(int(torch.randint(2**62, ()).item()))
        row, image = self.readable(index, rng)
        if not self.kind_weights:
            return self.transform(image), rng.choice(row["captions"]), ""
        return self.transform(image), *self.draw(row, rng)

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
        if rng.random() < self.drill:
            kind = rng.choices(KINDS, self.kind_weights)[0]
            for caption in captions:
                if negative := hard_negative(caption, kind, rng, holds):
                    return caption, negative
        offered = [hard_negative(captions[0], kind, rng, holds) or "" for kind in KINDS]
        weights = [w if negative else 0.0 for negative, w in zip(offered, self.kind_weights, strict=True)]
        return captions[0], rng.choices(offered, weights)[0] if any(weights) else ""


def truth_of(row: dict[str, Any]) -> Callable[[str], bool] | None:
    """Where the facts are known, a judge of what holds; a broken sentence holds nothing."""
    if "scene" not in row:
        return None
    scene = Scene.from_dict(row["scene"])
    return lambda text: judge_caption(text, scene).true


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
