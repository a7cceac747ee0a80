"""Invention: content words of a caption that no reference of its image contains.

A captioner that is rewarded for distinctive captions may name things that are not in the image. By this measure people
invent too: about 40 % of the content words of a person's caption are often not in the four other captions. So compare
the value with that of people's captions against the same number of references.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from hf_distinct.evaluation.bootstrap import Statistic, value_of
from hf_distinct.evaluation.ptb_tokenizer import tokenize

FUNCTION_WORDS = {
    "a", "about", "above", "across", "after", "against", "all", "along", "also", "am", "among", "an", "and",
    "another", "any", "are", "around", "as", "at", "away", "be", "because", "been", "before", "behind", "being",
    "below", "beneath", "beside", "besides", "between", "both", "but", "by", "can", "could", "did", "do", "does",
    "down", "during", "each", "few", "for", "from", "had", "has", "have", "he", "her", "hers", "him", "his", "how",
    "i", "if", "in", "inside", "into", "is", "it", "its", "itself", "just", "like", "many", "may", "me", "more",
    "most", "my", "near", "next", "no", "not", "of", "off", "on", "one", "onto", "or", "other", "others", "our",
    "out", "outside", "over", "own", "past", "several", "she", "so", "some", "such", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "through", "to", "together", "toward", "towards",
    "under", "until", "up", "upon", "us", "very", "was", "we", "were", "what", "when", "where", "which", "while",
    "who", "whose", "will", "with", "within", "without", "would", "you", "your", "'s", "n't",
}  # fmt: skip
"""English function words."""
VOWEL = re.compile("[aeiouy]")


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """Return a rough stem, which the forms of an English word share, such as "dogs", "running", "rides" and "babies".

    These give "dog", "run", "rid", "babi", "rid". Endings of plurals and verbs fall, then a doubled consonant and an
    Plural and verb endings are removed, then a doubled consonant and an "e", and "y" becomes "i", as in the first step
    of Porter's algorithm (1980). Irregular forms are not merged.
    """
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
        if word.endswith(("che", "she", "sse", "xe", "ie")):
            word = word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) > 1 and VOWEL.search(word[: -len(ending)]):
            word = word[: -len(ending)]
            if len(word) > 2 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if len(word) > 3 and word.endswith("e"):
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 2 and word.endswith("y") else word


def content_stems(caption: str) -> set[str]:
    """Return the stems of the different content words of a caption."""
    return {stem(word) for word in tokenize(caption) if word not in FUNCTION_WORDS}


def invented(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """Return for each caption how many of its different content words no reference contains, and how many it has.

    Args:
        captions: one caption per image.
        references: the reference captions of each image.

    Raises:
        ValueError: the two lists differ in length.
    """
    if isinstance(captions, str) or len(captions) != len(references):
        raise ValueError(
            f"captions and references must be lists of equal length, one row per image; got {len(captions)} captions "
            f"and {len(references)} lists of references."
        )
    counts = []
    for caption, own in zip(captions, references, strict=True):
        said, known = content_stems(caption), set[str]().union(*map(content_stems, own))
        counts.append((len(said - known), len(said)))
    return counts


def invention(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the fraction of all captions' content words that no reference of their image contains, from 0 to 1.

    Words are compared by stem and counted once per caption; captions without content words give 0. The word lists are
    English.

    Raises:
        ValueError: see `invented`.

    Example:
        >>> invention(["two dogs run on grass"], [["a dog is running", "a dog"]])  # "two", "grass" of four
        0.5
    """
    return value_of(invention_statistic(invented(captions, references)), len(captions))


def invention_statistic(counts: Sequence[tuple[int, int]] | np.ndarray) -> Statistic:
    """Return `invention` as a function of the images in the test set, from the counts of `invented`."""
    told = np.array(counts, dtype=np.float64).reshape(-1, 2)
    return lambda weights: weights @ told[:, 0] / np.maximum(weights @ told[:, 1], 1.0)
