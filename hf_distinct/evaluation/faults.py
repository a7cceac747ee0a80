"""Language faults that rewards without references cause: truncated captions and repeated words.

Texts are split by `hf_distinct.evaluation.ptb_tokenizer.tokenize`. `bad_endings` supports English only.
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
"""Words that need a continuation. Words that can end a caption ("a man looks up") are not included."""
ENGLISH = frozenset(["the", "and", "with"])
FEW_WORDS = 200


def seem_english(captions: Sequence[str]) -> bool:
    """Whether captions may be English: at least 1 % of the words are "the", "and" or "with". True for few words.

    In people's captions of photographs it is about 10 %; in other languages these three words do not occur.
    """
    return are_english(*english_words(captions))


def english_words(captions: Sequence[str]) -> tuple[int, int]:
    """Return how often captions use one of the words in `ENGLISH`, and their number of words."""
    rows = _tokenized(captions)
    return sum(word in ENGLISH for words in rows for word in words), sum(map(len, rows))


def are_english(english: int, words: int) -> bool:
    """Return what `seem_english` does, from the sums of `english_words`."""
    return words < FEW_WORDS or 100 * english >= words


def bad_endings(captions: Sequence[str]) -> list[bool]:
    """Return for each caption whether it is empty or ends with one of `BAD_ENDINGS`, such as "a man on a".

    The list is English; in other languages only empty captions are detected.

    Raises:
        ValueError: `captions` is a string.
    """
    return [not words or words[-1] in BAD_ENDINGS for words in _tokenized(captions)]


def repeats(captions: Sequence[str], n: int = 2) -> list[bool]:
    """Return for each caption whether it repeats a word immediately, or contains the same n words in a row twice.

    People rarely do this: in "a dog and a cat on a mat" no pair of words occurs twice.

    Raises:
        ValueError: `captions` is a string, or n is below 2.
    """
    if n < 2:
        raise ValueError(f"n should be at least 2, because single words often occur twice; got {n}.")
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
