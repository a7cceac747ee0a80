"""The grammar and truth of captions of emoji scenes."""

import pytest

from hf_distinct.data.emoji.judging import Judgement, judge_caption, scene_metrics
from hf_distinct.data.emoji.scenes import Scene

SCENE = Scene(("dog", "pizza"), ("big", "small"), "left of", "red")
TWO_ANIMALS = Scene(("dog", "cat"), ("big", "small"), "above", "orange")


@pytest.mark.parametrize(
    ("caption", "details"),
    [
        ("a big dog left of a small pizza on a red background", 6),
        ("a small pizza right of a big dog on a red background", 6),  # the same, told from the other side
        ("a dog left of a pizza", 3),
        ("a pizza right of a dog", 3),
        ("a dog and a pizza", 2),
        ("a pizza and a dog", 2),
        ("a pizza with a dog", 2),
        ("a dog and a pizza on a red background", 3),
        ("a dog on a red background", 2),
        ("a small pizza", 2),
        ("a dog", 1),
        ("an animal", 0),  # a category is no fact
        ("a big animal", 1),
        ("a dog with a snack", 1),
        ("an animal left of a snack", 1),
        ("a snack right of a big animal", 2),
        ("there is a dog", 1),
        ("a picture of a dog", 1),
        ("this is a pizza right of a dog", 3),
        ("A Dog And A Pizza.", 2),
        ("  a dog \n and   a pizza . ", 2),
    ],
)
def test_true_captions(caption, details):
    assert judge_caption(caption, SCENE) == Judgement(well_formed=True, true=True, details=details)


@pytest.mark.parametrize(
    ("caption", "details"),
    [
        ("a dog right of a pizza", 3),  # flipped relation
        ("a pizza left of a dog", 3),  # flipped order
        ("a dog above a pizza", 3),
        ("a small pizza left of a big dog on a red background", 6),
        ("a big dog left of a small pizza on a blue background", 6),
        ("a dog on an orange background", 2),
        ("a small dog", 2),
        ("a small animal", 1),
        ("a small dog left of a big pizza", 5),
        ("a cat", 1),
        ("a hot dog", 1),  # no dog
        ("a fruit", 0),
        ("a dog and a cat", 2),
        ("a dog and a dog", 2),  # there is only one
        ("an animal with an animal", 0),
        ("a snack left of an animal", 1),
    ],
)
def test_false_captions(caption, details):
    assert judge_caption(caption, SCENE) == Judgement(well_formed=True, true=False, details=details)


@pytest.mark.parametrize(
    "caption",
    [
        "", ".", "a", "there is", "this is a",
        "an dog", "a animal", "an big dog", "a dog and an pizza", "a dog on a orange background",  # wrong articles
        "a dog left of a", "a dog left of", "a dog left", "a dog and", "a dog on a red", "a big",  # truncated
        "dog", "big dog", "dog left of pizza", "a dog left a pizza", "a dog of a pizza",  # dropped words
        "dog a and pizza a", "a pizza a and dog", "left of a dog a pizza", "a dog big",  # shuffled
        "a dog and a pizza and a cat", "a dog a pizza", "a big big dog", "a big small dog", "a red dog", "a dogs",
        "there is this is a dog", "a dog there is", "a dog on a red background left of a pizza",
        "a dog on a red background on a red background", "a dog, a pizza", "a unicorn", "a dog on a black background",
    ],
)  # fmt: skip
def test_broken_captions(caption):
    assert judge_caption(caption, SCENE) == Judgement(well_formed=False, true=False, details=0)


@pytest.mark.parametrize(
    ("caption", "true"),
    [
        ("an animal above an animal", True),
        ("an animal below an animal", True),
        ("an animal left of an animal", False),
        ("a small animal and a dog", True),
        ("a small animal above an animal", False),  # the small one is below
        ("a big animal below an animal", False),
        ("an animal below a dog", True),
        ("an animal above a dog", False),
        ("a big animal and a big animal", False),
        ("a dog on an orange background", True),
    ],
)
def test_two_things_of_one_category(caption, true):
    judgement = judge_caption(caption, TWO_ANIMALS)
    assert (judgement.well_formed, judgement.true) == (True, true)


def test_scene_metrics_are_means():
    captions = ["a dog", "a dog right of a pizza", "a dog of", "a small pizza right of a dog"]  # details 1, 3, 0, 4
    assert scene_metrics(captions, [SCENE.to_dict()] * 4) == {"well_formed": 0.75, "true": 0.5, "details": 2.0}
