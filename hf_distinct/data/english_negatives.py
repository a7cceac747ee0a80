"""Rule-based hard negatives for captions of photographs: a changed fact, swapped words, or a broken sentence.

The rules use word lists and no grammar, so some negatives are odd English. Training and metrics distinguish the kinds,
which shows what a CLIP model understands: nouns long before prepositions (arXiv 2210.01936, ARO; arXiv 2306.14610,
SugarCrepe).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from hf_distinct.data.negatives import bare, broken

GROUPS: dict[str, list[str]] = {
    "noun": [
        "man woman boy girl baby", "men women boys girls", "dog cat horse bird cow sheep monkey elephant",
        "dogs cats horses birds cows sheep monkeys", "shirt jacket dress coat sweater", "hat cap helmet scarf",
        "shorts jeans pants skirt", "ball frisbee stick toy rope", "bicycle bike motorcycle skateboard scooter",
        "car truck bus boat train", "grass sand snow water dirt mud", "beach street park field forest desert",
        "mountain hill lake river ocean", "pool fountain bench fence wall", "house building store stadium church",
        "football soccer basketball baseball tennis hockey", "guitar drum piano violin", "tree rock flower bush",
    ],
    "colour": [
        "red blue green yellow orange purple pink black white brown gray grey", "blond brunette", "blonde brunette",
    ],
    "count": ["one two three four five six", "single many", "pair group"],
    "preposition": [
        "on under beside behind", "in outside", "inside outside", "over under", "above below", "up down",
        "left right", "into past", "through around", "with without", "toward across", "near inside",
    ],
    "action": [
        "running sitting sleeping standing jumping lying walking swimming climbing", "runs sits sleeps stands jumps",
        "throwing catching kicking holding", "riding pushing pulling carrying washing",
        "eating drinking smoking cooking", "smiling crying yelling frowning",
    ],
    "size": [
        "big small", "large little", "huge tiny", "tall short", "long short", "wide narrow", "young old",
        "empty full", "wet dry", "open closed",
    ],
}  # fmt: skip
"""Groups of interchangeable words, by kind of negative; a word in two groups can become any word of both."""

SAME = {"gray": "grey", "grey": "gray"}
SWAPS = {"swap_nouns": ("noun",), "swap_attributes": ("colour", "count", "size")}
BROKEN = ("shuffle", "drop", "cut", "repeat")
KINDS = (*GROUPS, *SWAPS, *BROKEN)
"""The kinds of [`hard_negative`]."""


def _others(lines: Iterable[str]) -> dict[str, list[str]]:
    others: dict[str, list[str]] = {}
    for words in map(str.split, lines):
        for word in words:
            known = others.setdefault(word, [])
            known += [each for each in words if each not in (word, SAME.get(word)) and each not in known]
    return others


OTHERS = {kind: _others(lines) for kind, lines in GROUPS.items()}
"""For each kind, the words that can replace a word."""


def hard_negative(
    caption: str,
    kind: str,
    rng: random.Random,
    holds: Callable[[str], bool] | None = None,
) -> str | None:
    """Turn a caption of a photograph into a false or broken one.

    Args:
        caption: a true caption.
        kind: ``"noun"``, ``"colour"``, ``"count"``, ``"preposition"``, ``"action"`` or ``"size"`` (one word becomes
            another of its group), ``"swap_nouns"`` or ``"swap_attributes"`` (two words of a kind are exchanged),
            ``"shuffle"`` (all words), ``"drop"`` (removes function words), ``"cut"`` (stops in mid-phrase),
            ``"repeat"`` (repeats a phrase).
        rng: random number generator.
        holds: returns whether a text is still true, and so is not a negative. See [`said_by_another`].

    Returns:
        The negative, or None if the caption allows none of this kind.

    Raises:
        ValueError: if the kind is unknown.

    Example:
        >>> hard_negative("A black dog and a white cat.", "swap_attributes", random.Random(0))
        'A white dog and a black cat.'
    """
    words = caption.split()
    if kind in OTHERS:
        changed = _replace(words, OTHERS[kind], rng)
    elif kind in SWAPS:
        changed = _swap(words, SWAPS[kind], rng)
    elif kind in BROKEN:
        changed = broken(words, kind, rng)
    else:
        raise ValueError(f"Unknown kind of hard negative {kind!r}; choose one of {', '.join(KINDS)}.")
    negative = " ".join(changed)
    return None if changed == words or (holds is not None and holds(negative)) else negative


def said_by_another(caption: str, captions: Sequence[str]) -> Callable[[str], bool]:
    """Return a function that guesses whether a changed caption is still true: its new words are in another caption.

    For example, "a man in a coat" is not false if another caption says so. Only new words count: a sentence with the
    same words in another order has none, and is false or broken.

    Args:
        caption: the caption that is changed.
        captions: all captions of the image.
    """
    own = set(map(bare, caption.split()))
    known = {bare(word) for each in captions for word in each.split()}

    def holds(text: str) -> bool:
        new = set(map(bare, text.split())) - own
        return bool(new) and new <= known

    return holds


def _replace(words: list[str], others: dict[str, list[str]], rng: random.Random) -> list[str]:
    """Replace one word by another of its group."""
    places = [i for i, word in enumerate(words) if bare(word) in others]
    if not places:
        return words
    place = rng.choice(places)
    return _with_articles(words, {place: rng.choice(others[bare(words[place])])})


def _swap(words: list[str], kinds: Sequence[str], rng: random.Random) -> list[str]:
    """Exchange two different words of the same kind, except in "brown and white", which would stay true."""
    known = [[i for i, word in enumerate(words) if bare(word) in OTHERS[kind]] for kind in kinds]
    pairs = [(i, j) for places in known for i, j in combinations(places, 2) if bare(words[i]) != bare(words[j])]
    pairs = [(i, j) for i, j in pairs if [bare(word) for word in words[i + 1 : j]] != ["and"]]
    if not pairs:
        return words
    i, j = rng.choice(pairs)
    return _with_articles(words, {i: bare(words[j]), j: bare(words[i])})


def _with_articles(words: list[str], new: dict[int, str]) -> list[str]:
    """Insert words, keeping capitals and full stops, and correct "a" or "an" before them."""
    changed = list(words)
    for place, word in new.items():
        old = words[place]
        changed[place] = re.sub(re.escape(bare(old)), word, old, count=1, flags=re.IGNORECASE)
        if old[0].isupper():
            changed[place] = changed[place][0].upper() + changed[place][1:]
        if place and bare(changed[place - 1]) in ("a", "an"):
            article = "an" if word[0] in "aeiou" and word not in ("one", "uniform") else "a"
            changed[place - 1] = article.capitalize() if changed[place - 1][0].isupper() else article
    return changed
