"""Faults of language that a reward without people's captions breeds: captions cut off, and words said again and again.

Texts are split by `hf_distinct.evaluation.ptb_tokenizer.tokenize`. `bad_endings` knows English alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from hf_distinct.evaluation.ptb_tokenizer import tokenize

BAD_ENDINGS = {
    "a", "about", "against", "along", "among", "an", "and", "as", "at", "because", "before", "beneath", "beside",
    "between", "but", "by", "for", "from", "his", "if", "in", "into", "its", "just", "like", "my", "of", "on", "onto",
    "or", "our", "over", "that", "the", "their", "through", "to", "toward", "towards", "under", "upon", "very",
    "while", "with", "within", "without", "your",
}  # fmt: skip
"""Words after which something must follow. Those that may well end a caption ("a man looks up") are not among them."""
ENGLISH = frozenset(["the", "and", "with"])
FEW_WORDS = 200


def seem_english(captions: Sequence[str]) -> bool:
    """Whether captions may be English: one word in a hundred is "the", "and" or "with". Too few words may be anything.

    Among people's captions of photographs it is one in ten; in other languages these three are no words.
    """
    words = [word for words in _tokenized(captions) for word in words]
    return len(words) < FEW_WORDS or 100 * sum(word in ENGLISH for word in words) >= len(words)


def bad_endings(captions: Sequence[str]) -> list[bool]:
    """Return for each caption whether it has no words, or ends in one of `BAD_ENDINGS`: "a man on a".

    The list is English; of captions in other languages only those without words are found.

    Raises:
        ValueError: `captions` is a string.
    """
    return [not words or words[-1] in BAD_ENDINGS for words in _tokenized(captions)]


def repeats(captions: Sequence[str], n: int = 2) -> list[bool]:
    """Return for each caption whether it says a word twice in a row, or n words in a row twice.

    People rarely do: in "a dog and a cat on a mat" no two words come twice together.

    Raises:
        ValueError: `captions` is a string, or n is below 2.
    """
    if n < 2:
        raise ValueError(f"single words may well come twice; n should be at least 2, got {n}.")
    found = []
    for words in _tokenized(captions):
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        twice = any(word == following for word, following in zip(words, words[1:], strict=False))
        found.append(twice or len(set(ngrams)) < len(ngrams))
    return found


def _tokenized(captions: Sequence[str]) -> list[list[str]]:
    if isinstance(captions, str):
        raise ValueError(f"expected a list of captions, got {captions!r}.")
    return [tokenize(caption) for caption in captions]
