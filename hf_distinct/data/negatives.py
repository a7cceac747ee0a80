"""Rule-based hard negatives: captions that share nearly all words with a true one, but are false or broken.

CLIP models are close to bags of words: a reversed relation or a shuffled sentence scores as high as the truth
(NegCLIP, Yuksekgonul et al. 2023, arXiv 2210.01936). Training with such negatives teaches them the difference.
"""

from __future__ import annotations

import random
from collections.abc import Callable

OPPOSITES = {
    "relation": [
        ("left", "right"), ("above", "below"), ("over", "under"), ("inside", "outside"), ("behind", "before"),
        ("top", "bottom"), ("up", "down"),
    ],
    "size": [
        ("big", "small"), ("large", "little"), ("huge", "tiny"), ("tall", "short"), ("long", "short"),
        ("thick", "thin"), ("wide", "narrow"),
    ],
}  # fmt: skip
NAMES = {("top", "hat"), ("top", "hats")}
"""Pairs of words of which the first has no opposite."""
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "with",
        "and",
        "on",
        "in",
        "at",
        "to",
        "is",
        "are",
        "there",
        "this",
        "that",
        "by",
        "for",
        "from",
        "its",
        "it",
    ]
)
KINDS = ("relation", "size", "swap", "shuffle", "drop", "cut")


def bare(word: str) -> str:
    """Normalise a word for the lists above: lower case, without punctuation."""
    return word.lower().strip(".,;:!?\"'()")


def _is_function_word(word: str) -> bool:
    return bare(word) in FUNCTION_WORDS


def _flip(words: list[str], pairs: list[tuple[str, str]], rng: random.Random) -> list[str]:
    """Replace one word by its opposite."""
    opposite = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    plains = [*map(bare, words), ""]
    places = [i for i in range(len(words)) if plains[i] in opposite and (plains[i], plains[i + 1]) not in NAMES]
    if not places:
        return words
    place = rng.choice(places)
    word, plain = words[place], bare(words[place])
    return [*words[:place], word.lower().replace(plain, opposite[plain]), *words[place + 1 :]]


def _swap(words: list[str], rng: random.Random) -> list[str]:
    """Exchange two content words."""
    places = [i for i, word in enumerate(words) if not _is_function_word(word)]
    if len(places) < 2:
        return words
    i, j = rng.sample(places, 2)
    words = list(words)
    words[i], words[j] = words[j], words[i]
    return words


def broken(words: list[str], kind: str, rng: random.Random) -> list[str]:
    """Break a sentence: ``"shuffle"``, ``"drop"``, ``"cut"`` or ``"repeat"``; unchanged if it is not possible."""
    return {"shuffle": _shuffle, "drop": _drop, "cut": _cut, "repeat": _repeat}[kind](words, rng)


def _shuffle(words: list[str], rng: random.Random) -> list[str]:
    return rng.sample(words, len(words))


def _repeat(words: list[str], rng: random.Random) -> list[str]:
    """Repeat one to three words."""
    if not words:
        return words
    start = rng.randrange(len(words))
    end = min(start + rng.randint(1, 3), len(words))
    return words[:end] + words[start:]


def _drop(words: list[str], rng: random.Random) -> list[str]:
    """Drop some or all function words."""
    places = [i for i, word in enumerate(words) if _is_function_word(word)]
    if not places or len(places) == len(words):
        return words
    gone = set(rng.sample(places, rng.randint(1, len(places))))
    return [word for i, word in enumerate(words) if i not in gone]


def _cut(words: list[str], rng: random.Random) -> list[str]:
    """Cut off the sentence after a function word."""
    places = [i for i, word in enumerate(words) if _is_function_word(word) and i > 0]
    return words[: rng.choice(places) + 1] if places else words


def hard_negative(
    caption: str,
    kind: str,
    rng: random.Random,
    holds: Callable[[str], bool] | None = None,
) -> str | None:
    """Turn a caption into a false or broken one.

    Args:
        caption: a true caption.
        kind: ``"relation"`` or ``"size"`` (a word becomes its opposite), ``"swap"`` (exchanges two content words),
            ``"shuffle"`` (all words), ``"drop"`` (removes function words), ``"cut"`` (stops in mid-phrase).
        rng: random number generator.
        holds: returns whether a text is still true, and so is not a negative.

    Returns:
        The negative, or None if the caption allows none of this kind.

    Raises:
        ValueError: if the kind is unknown.
    """
    words = caption.split()
    if kind in OPPOSITES:
        changed = _flip(words, OPPOSITES[kind], rng)
    elif kind == "swap":
        changed = _swap(words, rng)
    elif kind in KINDS:
        changed = broken(words, kind, rng)
    else:
        raise ValueError(f"Unknown kind of hard negative {kind!r}; choose one of {', '.join(KINDS)}.")
    negative = " ".join(changed)
    if changed == words or (holds is not None and holds(negative)):
        return None
    return negative
