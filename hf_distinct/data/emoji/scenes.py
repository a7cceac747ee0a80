"""The content of emoji scenes (nouns, sizes, relations, backgrounds), and how scenes and galleries are sampled."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

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

FACTS = 6
# A held-out split easily has a few thousand scenes; beyond that, sampling rarely finds new ones.
LARGEST_GALLERY = 4000


@lru_cache(maxsize=1)
def nouns() -> dict[str, tuple[str, str]]:
    """Return all nouns, most frequent first: ``{noun: (category, emoji character)}``."""
    import emoji

    names = {}
    for category, characters in CATEGORIES.items():
        for character in characters:
            name = emoji.EMOJI_DATA[character]["en"].strip(":").replace("_", " ").lower()
            names[name] = (category, character)
    order = sorted(names)
    random.Random(0).shuffle(order)  # frequency must not depend on the category
    return {name: names[name] for name in order}


@lru_cache(maxsize=1)
def _noun_list() -> tuple[str, ...]:
    return tuple(nouns())


@dataclass(frozen=True)
class Scene:
    """The six facts of an image.

    Attributes:
        nouns: the two things, which are always different.
        sizes: their sizes, each ``"small"`` or ``"big"``.
        relation: position of the first thing relative to the second: one of :data:`RELATIONS`.
        background: a key of :data:`BACKGROUNDS`.
    """

    nouns: tuple[str, str]
    sizes: tuple[str, str]
    relation: str
    background: str

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Scene:
        """Create a scene from a dataset row's ``scene`` column."""
        first, second = row["nouns"]
        size, other = row["sizes"]
        return cls((first, second), (size, other), row["relation"], row["background"])

    def to_dict(self) -> dict[str, Any]:
        """Return the scene in the format of the dataset."""
        return {
            "nouns": list(self.nouns),
            "sizes": list(self.sizes),
            "relation": self.relation,
            "background": self.background,
        }

    def swapped(self) -> Scene:
        """Return the same scene described from the second thing."""
        return Scene(self.nouns[::-1], self.sizes[::-1], OPPOSITE[self.relation], self.background)


def _mix(values: np.ndarray) -> np.ndarray:
    """Hash integers to 64 bits (the finaliser of splitmix64), so that the remainder gives a fair split."""
    with np.errstate(over="ignore"):
        values = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _canonical(facts: np.ndarray) -> np.ndarray:
    """Return facts ``(n, 6)`` with the lower noun first, so that both descriptions of a scene give one row."""
    swap = facts[:, 0] > facts[:, 1]
    flipped = facts[:, [1, 0, 3, 2, 4, 5]].copy()
    flipped[:, 4] ^= 1  # opposites are adjacent in RELATIONS
    return np.where(swap[:, None], flipped, facts)


def _split_of(facts: np.ndarray) -> np.ndarray:
    """Return the split ``(n,)`` of each scene, a function of its facts, so that no scene is in two splits.

    A few noun pairs belong entirely to the near-twin galleries; of all other scenes 5 % are validation and 5 % test.
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
    """Sample ``(size, 6)`` integers: two nouns (Zipf-like, rank^-0.5), two sizes, relation, background."""
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
            if key in seen and split != "train":  # a gallery contains each scene once
                continue
            seen.add(key)
            chosen.append(row)
            if len(chosen) == size:
                break
    return np.array(chosen).reshape(-1, FACTS)


def _twin_gallery(split: str, size: int, rng: np.random.Generator, group: int = 8) -> np.ndarray:
    """Sample groups of eight scenes with one noun pair; each differs from the group's first in one or two facts."""
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
            if not seen.isdisjoint(keys):  # another group of this pair contains one of them
                continue
            seen |= keys
            pairs.add(pair)
            chosen.extend(twins)
            if len(chosen) >= size:
                break
    return np.array(chosen[:size]).reshape(-1, FACTS)


def draw_scenes(split: str, size: int, seed: int) -> list[Scene]:
    """Return the scenes of a split, in order; see `hf_distinct.data.emoji.dataset.emoji_scenes`."""
    rng = np.random.default_rng([seed, sum(map(ord, split))])
    facts = (_twin_gallery if split.endswith("_twins") else _random_gallery)(split, size, rng)
    names, colours = _noun_list(), tuple(BACKGROUNDS)
    return [
        Scene((names[a], names[b]), (SIZES[s], SIZES[t]), RELATIONS[relation], colours[colour])
        for a, b, s, t, relation, colour in facts.tolist()
    ]
