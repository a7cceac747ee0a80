"""Emoji scenes as a dataset: images, captions and facts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hf_distinct.data.emoji.captions import PEOPLE_SHARES, STYLES, Shares, write_caption
from hf_distinct.data.emoji.drawing import encode_png, render
from hf_distinct.data.emoji.scenes import LARGEST_GALLERY, draw_scenes

if TYPE_CHECKING:
    from datasets import Dataset

LICENSE = "pictures made from Twemoji, CC-BY 4.0; captions Apache-2.0"


def _rows(split: str, size: int, seed: int, captions_per_image: int, shares: Shares) -> Iterator[dict[str, Any]]:
    base = (seed * 1_000_003 + sum(map(ord, split))) * 10_000_019
    for index, scene in enumerate(draw_scenes(split, size, seed)):
        rng = random.Random(base + index)
        weights = shares.alike if scene.sizes[0] == scene.sizes[1] else shares.unlike
        styles = rng.choices(STYLES, weights, k=captions_per_image)
        yield {
            "image": {"bytes": encode_png(render(scene, base + index)), "path": None},
            "captions": [write_caption(scene, style, rng) for style in styles],
            "image_id": f"{split}-{seed}-{index}",
            "scene": scene.to_dict(),
        }


def emoji_scenes(
    split: str,
    size: int,
    seed: int = 0,
    captions_per_image: int = 5,
    shares: Shares = PEOPLE_SHARES,
) -> Dataset:
    """Create a split of emoji scenes.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"``, ``"validation_twins"`` or ``"test_twins"``. A scene's facts
            determine its split, so no scene of the training split is in another one, whatever the seed.
        size: number of scenes; the twin galleries consist of groups of eight similar scenes in consecutive rows.
        seed: determines scenes and captions.
        captions_per_image: reference captions per image.
        shares: distribution of the caption styles.

    Returns:
        A dataset with ``image`` (64 x 64), ``captions``, ``image_id`` and ``scene`` (the facts, see :class:`Scene`).

    Raises:
        ValueError: if the split is unknown, or a held-out split does not have that many scenes.
    """
    from datasets import Dataset, Features, Image, List, Value

    known = ("train", "validation", "test", "validation_twins", "test_twins")
    if split not in known:
        raise ValueError(f"emoji scenes have no split {split!r}; they have {', '.join(known)}.")
    if split != "train" and size > LARGEST_GALLERY:
        raise ValueError(f"{size} {split} scenes are too many: a held-out split has at most {LARGEST_GALLERY}.")
    features = Features(
        {
            "image": Image(),
            "captions": List(Value("string")),
            "image_id": Value("string"),
            "scene": {
                "nouns": List(Value("string")),
                "sizes": List(Value("string")),
                "relation": Value("string"),
                "background": Value("string"),
            },
        }
    )
    rows = list(_rows(split, size, seed, captions_per_image, shares))
    return Dataset.from_list(rows, features=features)
