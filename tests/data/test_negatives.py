import random
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_distinct.data.emoji.captions import STYLES, write_caption
from hf_distinct.data.emoji.judging import judge_caption
from hf_distinct.data.emoji.scenes import draw_scenes
from hf_distinct.data.negatives import FUNCTION_WORDS, KINDS, hard_negative

SCENES = draw_scenes("train", 200, seed=0)


def negatives(caption: str, kind: str, tries: int = 200) -> set[str | None]:
    """All that chance makes of a caption."""
    return {hard_negative(caption, kind, random.Random(seed)) for seed in range(tries)}


@pytest.mark.parametrize(
    ("kind", "caption", "expected"),
    [
        ("relation", "a dog left of a cat", {"a dog right of a cat"}),
        ("relation", "a dog above a cat", {"a dog below a cat"}),
        # One relation is flipped at a time.
        ("relation", "a dog left of a cat above a bus", {"a dog right of a cat above a bus",
                                                         "a dog left of a cat below a bus"}),
        # As people write: capitals, commas and full stops. What is told as a fact keeps its place.
        ("relation", "Left, a man. A bus is on the right.", {"right, a man. A bus is on the right.",
                                                             "Left, a man. A bus is on the left."}),
        ("relation", "a dog and a cat", {None}),
        ("relation", "a leftover pizza", {None}),  # whole words only
        ("size", "a big dog with a small cat", {"a small dog with a small cat", "a big dog with a big cat"}),
        ("size", "a TALL man", {"a short man"}),
        ("size", "a dog", {None}),
        ("swap", "a dog left of a cat", {"a left dog of a cat", "a cat left of a dog", "a dog cat of a left"}),
        ("swap", "There is a dog", {None}),  # one content word has none to change with
        ("cut", "a dog and a cat", {"a dog and", "a dog and a"}),
        ("cut", "a dog", {None}),
        ("drop", "a dog and a cat", {"dog and a cat", "a dog a cat", "a dog and cat", "dog a cat", "dog and cat",
                                     "a dog cat", "dog cat"}),
        ("drop", "dogs", {None}),
        ("drop", "of the", {None}),  # nothing would be left
        ("drop", "A dog.", {"dog."}),
        ("shuffle", "a dog", {"dog a", None}),  # None where chance leaves the order as it was
    ],
)  # fmt: skip
def test_every_negative_of_a_kind(kind, caption, expected):
    assert negatives(caption, kind) == expected


def test_shuffling_keeps_the_words():
    caption = "a big dog left of a small cat"
    found = negatives(caption, "shuffle")
    assert len(found) > 100 and caption not in found
    assert all(Counter(text.split()) == Counter(caption.split()) for text in found if text)


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_is_no_negative(kind):
    caption = "a big dog left of a small cat"
    asked: list[str] = []

    def all_is_true(text: str) -> bool:
        asked.append(text)
        return True

    assert hard_negative(caption, kind, random.Random(1), all_is_true) is None
    assert asked and caption not in asked
    assert hard_negative(caption, kind, random.Random(1), lambda text: False) == asked[0]


def test_the_top_of_a_top_hat_has_no_opposite():
    assert hard_negative("a croissant and a top hat", "relation", random.Random(0)) is None
    assert hard_negative("a top hat on top", "relation", random.Random(0)) == "a top hat on bottom"


@given(st.integers(0, 199), st.sampled_from(STYLES), st.sampled_from(KINDS), st.integers(0, 2**32))
@example(170, "two", "relation", 0)
def test_on_emoji_scenes_a_negative_is_a_lie_or_broken(number, style, kind, seed):
    scene, rng = SCENES[number], random.Random(seed)
    caption = write_caption(scene, style, rng)
    negative = hard_negative(caption, kind, rng, lambda text: judge_caption(text, scene).true)
    if negative is None:
        return
    judgement = judge_caption(negative, scene)
    assert negative != caption and not judgement.true
    words, told = caption.split(), negative.split()
    if kind in ("relation", "size"):  # a lie in good order
        assert judgement.well_formed
        assert sum(a != b for a, b in zip(words, told, strict=True)) == 1
    elif kind in ("swap", "shuffle"):
        assert Counter(told) == Counter(words)
    elif kind == "cut":
        assert words[: len(told)] == told and told[-1] in FUNCTION_WORDS and len(told) < len(words)
    else:
        content = [[word for word in each if word not in FUNCTION_WORDS] for each in (words, told)]
        assert content[0] == content[1] and len(told) < len(words)


def test_every_full_caption_offers_every_kind():
    rng = random.Random(0)
    for scene in SCENES:
        caption = write_caption(scene, "everything", rng)
        for kind in KINDS:
            assert any(hard_negative(caption, kind, rng) for _ in range(3))


def test_unknown_kind():
    with pytest.raises(ValueError, match="'typo'; choose one of relation, size, swap, shuffle, drop, cut"):
        hard_negative("a dog", "typo", random.Random(0))
