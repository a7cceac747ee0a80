"""How varied captions are: a captioner can be right and still say the same of everything.

Texts are split by `hf_distinct.evaluation.captions.tokenize`, so that case and punctuation make no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from .captions import tokenize


def vocabulary(captions: Sequence[str]) -> int:
    """Return the number of different words in all captions.

    Raises:
        ValueError: there are no captions.
    """
    return len({word for words in _tokenized(captions) for word in words})


def unique_share(captions: Sequence[str]) -> float:
    """Return the number of different captions over the number of captions, from 1 / len(captions) to 1.

    Raises:
        ValueError: there are no captions.
    """
    tokenized = _tokenized(captions)
    return len(set(map(tuple, tokenized))) / len(tokenized)


def mean_length(captions: Sequence[str]) -> float:
    """Return the mean number of words in a caption.

    Raises:
        ValueError: there are no captions.
    """
    tokenized = _tokenized(captions)
    return sum(map(len, tokenized)) / len(tokenized)


def distinct_n(captions: Sequence[str], n: int = 2) -> float:
    """Return the number of different n-grams over the number of all n-grams of all captions, from 0 to 1.

    (Li et al.: A Diversity-Promoting Objective Function for Neural Conversation Models, arXiv 1510.03055.) It falls
    with the number of captions: compare only sets of equal size. Captions too short for any n-gram give 0.

    Raises:
        ValueError: there are no captions, or n is below 1.
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, got n = {n}.")
    ngrams = [tuple(words[i : i + n]) for words in _tokenized(captions) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _tokenized(captions: Sequence[str]) -> list[list[str]]:
    if isinstance(captions, str) or not captions:
        raise ValueError(f"expected a list with at least one caption, got {captions!r}.")
    return [tokenize(caption) for caption in captions]
