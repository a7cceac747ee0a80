"""CLIP training: rows with hard negatives, the loss, and metrics of retrieval and hard negatives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from open_clip.loss import gather_features
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging

from hf_distinct.data import english_negatives, negatives
from hf_distinct.data.emoji.captions import full_caption
from hf_distinct.data.emoji.judging import judge_caption
from hf_distinct.data.emoji.scenes import Scene
from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.tower_features import Views
from hf_distinct.evaluation.retrieval import retrieval_metrics
from hf_distinct.files.parts import this_process
from hf_distinct.losses import matching_loss
from hf_distinct.scorer import clean_caption, encode_token_ids
from hf_distinct.training.clip_building import split_image_tower

logger = logging.get_logger(__name__)

TRIES = 20
REPORTED = ("t2i_R@1", "i2t_R@1", "t2i_R@5")


@dataclass
class NegativeRules:
    """How hard negatives of captions are generated.

    Attributes:
        kinds: names of the kinds.
        make: generates one: ``make(caption, kind, rng, holds)``.
        weights: default probabilities of the kinds, not normalised.
    """

    kinds: Sequence[str]
    make: Callable[..., str | None]
    weights: Sequence[float]


EMOJI_RULES = NegativeRules(negatives.KINDS, negatives.hard_negative, (8.0, 4.0, 2.0, 1.5, 2.0, 1.5))
ENGLISH_RULES = NegativeRules(
    english_negatives.KINDS, english_negatives.hard_negative, (4, 4, 4, 2, 3, 2, 4, 4, 1, 1, 1, 1)
)


@dataclass
class ClipBatch:
    """n images with k captions each, and hard negatives.

    Attributes:
        pictures: pixels ``(n, 3, height, width)``, or features ``(n, ...)``.
        captions: the captions, those of the first image first; or their features ``(n * k, width)``.
        negatives: n negatives of the first captions; an empty string where a caption has none.
        has_features: whether ``pictures`` are features.
    """

    pictures: Tensor
    captions: list[str] | Tensor
    negatives: list[str]
    has_features: bool = False

    def texts(self) -> list[str]:
        """Return what the text tower reads: captions without features, and negatives."""
        captions = [] if isinstance(self.captions, Tensor) else self.captions
        return captions + [text for text in self.negatives if text]


class CaptionedImages(torch.utils.data.Dataset):
    """Rows as (pixels, random captions, hard negative of the first caption or empty string).

    Only few captions allow the kinds of negatives that are hard to learn. So for a fraction ``drill`` of the rows, the
    kind is drawn first, and then a caption that allows it. For the other rows the caption is drawn first.

    Args:
        dataset: ``image``, ``captions``, ``image_id``; emoji scenes also have ``scene``.
        views: the views of an image. A mirrored view is not used with a caption that says left or right.
        rules: rules for hard negatives; None for no negatives.
        kind_weights: weights of the kinds.
        drill: the fraction described above.
        features: features of a frozen tower for the views of each row, ``(N, V, ...)``, used instead of pixels.
        captions_per_image: number of captions of each row, k. A row with fewer captions repeats them.
        caption_features: features of a frozen tower for the captions of each row, ``(N, C, width)``, used instead of
            the captions.
    """

    def __init__(
        self,
        dataset: Any,
        views: Views,
        rules: NegativeRules | None = None,
        kind_weights: Sequence[float] = (),
        drill: float = 0.0,
        features: Tensor | None = None,
        captions_per_image: int = 1,
        caption_features: Tensor | None = None,
    ):
        self.dataset, self.views, self.rules, self.drill, self.features = dataset, views, rules, drill, features
        self.kind_weights, self.captions_per_image = kind_weights, captions_per_image
        self.caption_features = caption_features
        self.texts = dataset.remove_columns("image") if features is not None else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, list[str] | Tensor, str]:
        rng = random.Random(int(torch.randint(2**62, ()).item()))
        image = None
        if self.features is not None:
            row = self.texts[index]
        else:
            index, row, image = self.readable(index, rng)
        places, negative = self.draw(row, rng)
        captions = [clean_caption(row["captions"][place]) for place in places]
        view = self.views.draw(rng, not any(map(says_side, captions)))
        picture = self.views.make(image, view) if image else self.features[index, view].float()  # type: ignore[index]
        return picture, captions if self.caption_features is None else self.caption_features[index, places], negative

    def readable(self, index: int, rng: random.Random) -> tuple[int, dict[str, Any], Image.Image]:
        """Return a row's number, the row and its image; if the image cannot be decoded, those of another row.

        Raises:
            ValueError: none of `TRIES` images can be decoded.
        """
        for _ in range(TRIES):
            row = self.dataset[index]
            try:
                return index, row, decode_image(row["image"])
            except ImageError as error:
                reason = f"image {row['image_id']!r} cannot be used for training: {error}"
                logger.warning("%s. Another image is used instead.", reason)
                index = rng.randrange(len(self.dataset))
        raise ValueError(f"{TRIES} images in a row cannot be decoded; the last error: {reason}")

    def draw(self, row: dict[str, Any], rng: random.Random) -> tuple[list[int], str]:
        """Draw k of the row's captions, as their places, and a negative of the first one; empty if it allows none."""
        order = rng.sample(range(len(row["captions"])), len(row["captions"]))
        first, negative = (order[0], "") if self.rules is None else self._with_negative(row, order, rng)
        order = [first, *(place for place in order if place != first)]
        return [order[number % len(order)] for number in range(self.captions_per_image)], negative

    def _with_negative(self, row: dict[str, Any], order: list[int], rng: random.Random) -> tuple[int, str]:
        """Choose the caption that gets a negative, and draw it."""
        assert self.rules is not None
        kinds, make = self.rules.kinds, self.rules.make
        if rng.random() < self.drill:
            kind = rng.choices(kinds, self.kind_weights)[0]
            for place in order:
                caption = clean_caption(row["captions"][place])
                if negative := make(caption, kind, rng, truth_of(row, caption)):
                    return place, negative
        caption = clean_caption(row["captions"][order[0]])
        holds = truth_of(row, caption)
        offered = [make(caption, kind, rng, holds) or "" for kind in kinds]
        weights = [w if negative else 0.0 for negative, w in zip(offered, self.kind_weights, strict=True)]
        return order[0], rng.choices(offered, weights)[0] if any(weights) else ""

    def collate(self, rows: list[tuple[Tensor, list[str] | Tensor, str]]) -> ClipBatch:
        """Join rows in a batch."""
        pictures, captions, negatives = zip(*rows, strict=True)
        texts = [caption for own in captions for caption in own]
        joined = texts if self.caption_features is None else torch.stack(texts)
        return ClipBatch(torch.stack(pictures), joined, list(negatives), self.features is not None)


def says_side(caption: str) -> bool:
    """Whether a caption says left or right, and so is false for a mirrored image."""
    return not {"left", "right"}.isdisjoint(map(negatives.bare, caption.split()))


def truth_of(row: dict[str, Any], caption: str) -> Callable[[str], bool]:
    """Return a function that checks if a changed caption is still true, by the scene's facts or the other captions."""
    if "scene" not in row:
        return english_negatives.said_by_another(caption, row["captions"])
    scene = Scene.from_dict(row["scene"])
    return lambda text: judge_caption(text, scene).true


class Embedder(nn.Module):
    """A CLIP that embeds pixels, or features of its frozen image tower, and token ids.

    Args:
        model: an open_clip model.
        thawed: last stages of its image tower that do not belong to the frozen part.
    """

    def __init__(self, model: Any, thawed: int = 0) -> None:
        super().__init__()
        self.model = model
        _, self.project = split_image_tower(model, thawed)

    def forward(
        self, pictures: Tensor, token_ids: Tensor, has_features: bool = False, caption_features: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embed images and texts.

        Args:
            pictures: pixels ``(n, 3, height, width)``, or features ``(n, ...)`` of the tower's frozen part.
            token_ids: ``(m, context)``.
            has_features: whether ``pictures`` are features.
            caption_features: features ``(c, width)`` of a frozen text tower, embedded before the m texts; None for no
                such texts.

        Returns:
            Unit vectors ``(n, d)`` and ``(c + m, d)``, float32, and the logit scale.
        """
        images = self.project(pictures) if has_features else self.model.encode_image(pictures)
        texts = [] if caption_features is None else [self.model.text.proj(caption_features.float())]
        if len(token_ids):
            texts.append(encode_token_ids(self.model, token_ids))
        units = [F.normalize(each.float(), dim=-1) for each in (images, torch.cat(texts))]
        return units[0], units[1], self.model.logit_scale.exp()


def loss_of(images: Tensor, texts: Tensor, scale: Tensor, has_negative: Tensor, weight: float, k: int = 1) -> Tensor:
    """Symmetric InfoNCE, plus the log-odds of each first caption against its own hard negative.

    Captions of the same image do not compete with each other, see [`hf_distinct.losses.matching_loss`].

    With several processes, images and captions of all processes are compared, and each process returns the loss of the
    whole batch.

    Args:
        images: unit vectors ``(n, d)``.
        texts: unit vectors ``(n * k + m, d)``: the captions, those of the first image first, then the negatives of the
            rows that have one.
        scale: the logit scale.
        has_negative: ``(n,)`` bool, m of them True.
        weight: weight of the hard negatives.
        k: captions per image.
    """
    rank, processes = this_process()
    captions, negatives = texts[: k * len(images)], texts[k * len(images) :]
    all_images, all_captions = images, captions
    if processes > 1:
        all_images, all_captions = gather_features(
            images, captions, gather_with_grad=True, rank=rank, world_size=processes
        )
    logits = scale * all_captions @ all_images.T
    image_of = torch.arange(len(all_images), device=logits.device).repeat_interleave(k)
    loss = matching_loss(logits, image_of)
    count = torch.tensor(float(len(negatives)), device=logits.device)
    if processes > 1:
        torch.distributed.all_reduce(count)
    if count:
        lies = scale * (images[has_negative] * negatives).sum(-1)
        truths = scale * (images * captions[::k]).sum(-1)[has_negative]
        odds = F.softplus(lies - truths)
        # Gradients are averaged over processes, which may have different numbers of negatives.
        loss = loss + weight * odds.sum() * processes / count
    return loss


class Measure:
    """Measures retrieval and hard negatives on a split; its features may be computed in advance.

    Queries are the most detailed caption of an emoji scene, and all captions of other images.

    Args:
        dataset: as for `CaptionedImages`; all images can be decoded.
        transform: turns an RGB image into pixels.
        tokenize: turns texts into token ids.
        rules: rules for the hard negatives.
        features: ``(N, 1, ...)`` of the image tower's frozen part; None if the model gets pixels.
        thawed: last stages of the image tower that do not belong to the frozen part.
        caption_features: ``(N, C, width)`` of a frozen text tower; None if the model gets the captions.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable,
        tokenize: Callable,
        rules: NegativeRules,
        features: Tensor | None = None,
        thawed: int = 0,
        caption_features: Tensor | None = None,
    ):
        self.dataset, self.transform, self.tokenize, self.rules = dataset, transform, tokenize, rules
        self.features, self.thawed, self.caption_features = features, thawed, caption_features
        self.rows: list[dict[str, Any]] = list(dataset.remove_columns("image"))
        self.emoji = "scene" in dataset.column_names
        self.captions = [
            [full_caption(Scene.from_dict(row["scene"]))] if self.emoji else list(map(clean_caption, row["captions"]))
            for row in self.rows
        ]

    @torch.no_grad()
    def __call__(self, model: Any, kinds: bool = True) -> dict[str, float]:
        """Measure a model and leave it in eval mode.

        Args:
            model: an open_clip model.
            kinds: also measure how often an image's first caption beats each kind of hard negative.
        """
        model.eval()
        images = self._images(model)
        counts = torch.tensor(list(map(len, self.captions)), device=images.device)
        if self.caption_features is None:
            texts = self._texts(model, [text for each in self.captions for text in each])
        else:
            known = [own[: len(each)] for own, each in zip(self.caption_features, self.captions, strict=True)]
            texts = F.normalize(model.text.proj(torch.cat(known).float().to(images.device)), dim=-1)
        places = torch.arange(len(self.rows), device=texts.device).repeat_interleave(counts)
        found = retrieval_metrics(texts, images, places)
        metrics = {name: value for name, value in found.items() if name in REPORTED}
        firsts = texts[counts.cumsum(0) - counts]
        return metrics | (self._kinds(model, images, firsts) if kinds else {})

    def _images(self, model: Any) -> Tensor:
        device, (_, project) = model.logit_scale.device, split_image_tower(model, self.thawed)
        embeds = []
        for start in range(0, len(self.rows), 100):
            if self.features is not None:
                embeds.append(project(self.features[start : start + 100, 0].float().to(device)))
                continue
            part = self.dataset[start : start + 100]["image"]
            pixels = torch.stack([self.transform(decode_image(each)) for each in part])
            embeds.append(model.encode_image(pixels.to(device)))
        return torch.cat([F.normalize(each, dim=-1) for each in embeds])

    def _texts(self, model: Any, texts: list[str]) -> Tensor:
        device = model.logit_scale.device
        parts = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]
        return F.normalize(
            torch.cat([encode_token_ids(model, self.tokenize(each).to(device)) for each in parts]), dim=-1
        )

    def _kinds(self, model: Any, images: Tensor, firsts: Tensor) -> dict[str, float]:
        metrics: dict[str, float] = {}
        rng = random.Random(0)
        truths = [each[0] for each in self.captions]
        for kind in self.rules.kinds:
            lies = [
                self.rules.make(truth, kind, rng, truth_of(row, truth))
                for truth, row in zip(truths, self.rows, strict=True)
            ]
            index = torch.tensor([place for place, lie in enumerate(lies) if lie], dtype=torch.int64)
            if len(index):
                false = self._texts(model, [lie for lie in lies if lie])
                own, lying = (firsts * images).sum(-1)[index], (false * images[index]).sum(-1)
                metrics[f"prefers_truth/{kind}"] = float((own > lying).float().mean())
        return metrics
