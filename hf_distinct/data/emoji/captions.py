"""Captions of emoji scenes in different styles."""

from __future__ import annotations

import random
from typing import NamedTuple

from hf_distinct.data.emoji.scenes import Scene, nouns

OPENINGS = ("there is", "a picture of", "this is")
# How detailed a caption is, from "one" thing to "everything".
STYLES = ("one", "vague", "two", "relation", "everything")


class Shares(NamedTuple):
    """Probability of each of :data:`STYLES`.

    Attributes:
        alike: in scenes with two things of the same size.
        unlike: in scenes with a big and a small thing.
    """

    alike: tuple[float, ...]
    unlike: tuple[float, ...]


# Salient things are named: a small thing next to a big one is often left out.
PEOPLE_SHARES = Shares((0.20, 0.10, 0.30, 0.30, 0.10), (0.40, 0.10, 0.15, 0.25, 0.10))
DETAILED_SHARES = Shares(*[(0.10, 0.10, 0.15, 0.25, 0.40)] * 2)
FULL_SHARES = Shares(*[(0.0, 0.0, 0.0, 0.0, 1.0)] * 2)
CAPTION_STYLES = {"people": PEOPLE_SHARES, "detailed": DETAILED_SHARES, "full": FULL_SHARES}


def with_article(word: str) -> str:
    """Add the indefinite article to a word: "a dog", "an owl"."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _phrase(noun: str, size: str | None = None) -> str:
    return with_article(f"{size} {noun}" if size else noun)


def write_caption(scene: Scene, style: str, rng: random.Random) -> str:
    """Write one caption as a person might: usually the bigger thing first, the rest according to ``style``.

    Args:
        scene: the scene to describe.
        style: one of :data:`STYLES`.
        rng: determines the wording.
    """
    big_first = scene.sizes == ("small", "big")
    if big_first if rng.random() < 0.85 else rng.random() < 0.5:
        scene = scene.swapped()
    (first, second), (size, other) = scene.nouns, scene.sizes
    said = [size if rng.random() < 0.1 else None, other if rng.random() < 0.1 else None]
    background = f"on {with_article(scene.background)} background"
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
    """Return the caption that states all six facts correctly, the maximum of what a caption can say here."""
    return write_caption(scene, "everything", _Plain())


class _Plain(random.Random):
    """A random number generator that never chooses an option: captions are plain and in the scene's order."""

    def random(self) -> float:
        return 0.999
