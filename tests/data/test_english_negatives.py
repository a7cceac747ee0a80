"""Hard negatives of captions of photographs, kind by kind."""

import random
from collections import Counter

import pytest

from hf_distinct.data.english_negatives import GROUPS, KINDS, OTHERS, hard_negative, said_by_another


def negatives(caption: str, kind: str, tries: int = 300) -> set[str | None]:
    """All that chance makes of a caption."""
    return {hard_negative(caption, kind, random.Random(seed)) for seed in range(tries)}


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("noun", "Two dogs run.", {f"Two {each} run." for each in OTHERS["noun"]["dogs"]}),
        ("noun", "a piano", {"a guitar", "a drum", "a violin"}),
        ("noun", "somebody runs", {None}),
        ("colour", "A blond man", {"A brunette man"}),
        ("colour", "a gray, wet dog", {f"a{'n' * (c == 'orange')} {c}, wet dog" for c in OTHERS["colour"]["gray"]}),
        ("count", "Many dogs", {"Single dogs"}),
        ("preposition", "a dog above it", {"a dog below it"}),
        ("action", "a man riding", {"a man pushing", "a man pulling", "a man carrying", "a man washing"}),
        ("size", "an old man", {"a young man"}),
        ("size", "An empty street", {"A full street"}),
        ("swap_nouns", "A man bites a dog.", {"A dog bites a man."}),
        ("swap_nouns", "a man sees a man", {None}),
        ("swap_nouns", "men and women", {None}),  # as true as before
        ("swap_attributes", "A black dog and an orange ball", {"An orange dog and a black ball"}),
        ("swap_attributes", "a brown and white dog", {None}),
        ("swap_attributes", "a big red dog", {None}),  # nothing that a size could change places with
        ("cut", "a dog and a cat", {"a dog and", "a dog and a"}),
        ("repeat", "a dog", {"a a dog", "a dog dog", "a dog a dog"}),
    ],
)  # fmt: skip
def test_every_negative_of_a_kind(kind: str, caption: str, expected: set[str | None]) -> None:
    assert negatives(caption, kind) == expected


def test_disorder_keeps_the_words() -> None:
    caption = "a man in a red shirt runs on the beach"
    for text in negatives(caption, "shuffle"):
        assert text is None or Counter(text.split()) == Counter(caption.split())
    for text in negatives(caption, "drop"):
        assert text is not None and [w for w in text.split() if len(w) > 3] == ["shirt", "runs", "beach"]


@pytest.mark.parametrize("kind", GROUPS)
def test_no_word_stands_for_itself_and_each_way_leads_back(kind: str) -> None:
    for word, others in OTHERS[kind].items():
        assert word not in others and len(others) == len(set(others))
        assert all(word in OTHERS[kind][other] for other in others)


def test_what_another_caption_says_is_no_negative() -> None:
    captions = ["a man in a shirt", "a boy in a dress", "a coat"]
    holds = said_by_another(captions[0], captions)
    found = {hard_negative(captions[0], "noun", random.Random(seed), holds) for seed in range(300)} - {None}
    said = {"a woman in a shirt", "a girl in a shirt", "a baby in a shirt", "a man in a jacket", "a man in a sweater"}
    assert found == said  # neither boy, dress nor coat
    assert not said_by_another("a dog and a cat", captions)("a cat and a dog")  # other order, nothing new


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="'typo'; choose one of noun, colour, .*, repeat"):
        hard_negative("a dog", "typo", random.Random(0))
    assert len(KINDS) == len(set(KINDS)) == 12
