"""Corrupt captions as captioners do: negative examples for the grammar judge.

Each function takes the words of a caption (see `hf_distinct.evaluation.ptb_tokenizer.tokenize`) and a `random.Random`,
and returns the corrupted words, or None if this corruption does not apply to the caption. Word lists are English.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from hf_distinct.evaluation.faults import BAD_ENDINGS

ARTICLES = frozenset(["a", "an", "the"])
FILLERS = ("a", "the", "of", "with", "and", "in", "on", "is", "are", "to", "at", "while", "that", "there", "it")
"""Words that are inserted where they do not belong."""
LONGEST_PHRASE = 5
MOST_REPEATS = 3

Words = list[str]
Corruption = Callable[[Sequence[str], Random], Words | None]


def swapped(words: Sequence[str], random: Random) -> Words | None:
    """Swap two different words: "a dog on red a mat"."""
    places = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words)) if words[i] != words[j]]
    if not places:
        return None
    i, j = random.choice(places)
    corrupted = list(words)
    corrupted[i], corrupted[j] = corrupted[j], corrupted[i]
    return corrupted


def shuffled(words: Sequence[str], random: Random) -> Words | None:
    """Shuffle all words."""
    if len(set(words)) < 3:
        return None
    corrupted = random.sample(list(words), len(words))
    return corrupted if corrupted != list(words) else None


def repeated_word(words: Sequence[str], random: Random) -> Words | None:
    """Repeat a word once or more: "a dog dog on a mat". For articles see `doubled_article`."""
    places = [place for place, word in enumerate(words) if word not in ARTICLES]
    if not places:
        return None
    place = random.choice(places)
    return [*words[:place], *[words[place]] * random.randint(1, MOST_REPEATS), *words[place:]]


def repeated_phrase(words: Sequence[str], random: Random) -> Words | None:
    """Repeat two to five words, then continue or stop: "a girl with a girl with a girl"."""
    if len(words) < 2:
        return None
    length = random.randint(2, min(LONGEST_PHRASE, len(words)))
    start = random.randint(0, len(words) - length)
    phrase = list(words[start : start + length])
    corrupted = [*words[:start], *phrase * (1 + random.randint(1, MOST_REPEATS))]
    if random.random() < 0.5:  # end within a repetition, as samples do
        return corrupted[: len(corrupted) - random.randint(0, length - 1)]
    return [*corrupted, *words[start + length :]]


def cut(words: Sequence[str], random: Random) -> Words | None:
    """Cut off the end after a word that needs a continuation: "a man in a"."""
    ends = [place for place in range(1, len(words)) if words[place - 1] in BAD_ENDINGS]
    return list(words[: random.choice(ends)]) if ends else None


def doubled_article(words: Sequence[str], random: Random) -> Words | None:
    """Insert a second article after an article: "a the dog"."""
    places = [place for place, word in enumerate(words) if word in ARTICLES]
    if not places:
        return None
    place = random.choice(places)
    return [*words[: place + 1], random.choice([words[place], "a", "the"]), *words[place + 1 :]]


def dropped_article(words: Sequence[str], random: Random) -> Words | None:
    """Drop an article, but not the first word: "a man on horse"."""
    places = [place for place, word in enumerate(words) if place and word in ARTICLES]
    if not places:
        return None
    place = random.choice(places)
    return [*words[:place], *words[place + 1 :]]


def dropped_word(words: Sequence[str], random: Random) -> Words | None:
    """Drop a preposition, a conjunction or another function word, but not an article: "a man a horse"."""
    places = [place for place, word in enumerate(words) if word in BAD_ENDINGS - ARTICLES]
    if not places:
        return None
    place = random.choice(places)
    return [*words[:place], *words[place + 1 :]]


def filler(words: Sequence[str], random: Random) -> Words | None:
    """Insert one to three function words: "a dog of on the a mat"."""
    corrupted = list(words)
    for _ in range(random.randint(1, MOST_REPEATS)):
        corrupted.insert(random.randint(0, len(corrupted)), random.choice(FILLERS))
    return corrupted if words else None


def heap(words: Sequence[str], random: Random) -> Words | None:
    """Repeat some of the words at random: "young girl girl the street the street the street"."""
    pieces = [list(words[place : place + 1 + random.randint(0, 1)]) for place in range(len(words))]
    if len(pieces) < 3:
        return None
    chosen = [random.choice(pieces) for _ in range(random.randint(2, 4))]
    heaped = [word for piece in chosen for word in piece * random.randint(1, MOST_REPEATS)]
    return heaped if heaped != list(words[: len(heaped)]) else None


CORRUPTIONS: dict[str, Corruption] = {
    each.__name__: each
    for each in (
        swapped, shuffled, repeated_word, repeated_phrase, cut, doubled_article, dropped_article, dropped_word, filler,
        heap,
    )
}  # fmt: skip
"""The corruptions by name."""


def corrupt(words: Sequence[str], random: Random) -> Words | None:
    """Corrupt a caption in one of the applicable ways, chosen at random; None if none applies."""
    for kind in random.sample(sorted(CORRUPTIONS), len(CORRUPTIONS)):
        corrupted = CORRUPTIONS[kind](words, random)
        if corrupted is not None:
            return corrupted
    return None
