import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.data.emoji.captions import DETAILED_SHARES, FULL_SHARES, OPENINGS, STYLES, full_caption, write_caption
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.drawing import _sprite, render
from hf_distinct.data.emoji.judging import Judgement, judge_caption, scene_metrics
from hf_distinct.data.emoji.scenes import (
    BACKGROUNDS,
    CATEGORIES,
    LARGEST_GALLERY,
    OPPOSITE,
    RELATIONS,
    SIZES,
    Scene,
    draw_scenes,
    nouns,
)

SCENE = Scene(("dog", "pizza"), ("big", "small"), "left of", "red")
TWO_ANIMALS = Scene(("dog", "cat"), ("big", "small"), "above", "orange")
HELD_OUT = ("validation", "test", "validation_twins", "test_twins")


def canonical(scene: Scene) -> Scene:
    """Both tellings of a scene as one."""
    return scene if scene.nouns[0] < scene.nouns[1] else scene.swapped()


def facts_that_differ(scene: Scene, other: Scene) -> int:
    assert scene.nouns == other.nouns
    pairs = [*zip(scene.sizes, other.sizes, strict=True), (scene.relation, other.relation)]
    return sum(a != b for a, b in [*pairs, (scene.background, other.background)])


# ------------------------------------------------------------------------------------------------------- the judge


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


# ----------------------------------------------------------------------------------------------------- the captions

scene_strategy = st.builds(
    Scene,
    st.lists(st.sampled_from(list(nouns())), min_size=2, max_size=2, unique=True).map(tuple),
    st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    st.sampled_from(RELATIONS),
    st.sampled_from(list(BACKGROUNDS)),
)


@given(scene_strategy, st.sampled_from(STYLES), st.integers(0, 2**32))
def test_every_written_caption_is_true_and_every_flipped_fact_makes_it_false(scene, style, seed):
    caption = write_caption(scene, style, random.Random(seed))
    judgement = judge_caption(caption, scene)
    assert judgement.well_formed and judgement.true
    assert judge_caption(caption, scene.swapped()) == judgement
    # one: noun and size, or a category; vague: the second thing is only a category; relation: or the background
    least, most = {"one": (0, 2), "vague": (1, 2), "two": (2, 4), "relation": (3, 5), "everything": (6, 6)}[style]
    assert least <= judgement.details <= most
    assert judge_caption(f"{caption.capitalize()}.", scene) == judgement
    for lie in lies(caption):
        told = judge_caption(lie, scene)
        assert told.well_formed and not told.true, lie
    wrong_article = re.sub(r"\b(a|an)\b", lambda found: "an" if found.group() == "a" else "a", caption)
    assert not judge_caption(wrong_article, scene).well_formed
    assert not judge_caption(caption.rsplit(" ", 1)[0], scene).well_formed


def lies(caption: str) -> list[str]:
    """The caption with one fact flipped, every way."""
    found = []
    for relation in RELATIONS:
        if f" {relation} " in caption:
            found += [caption.replace(f" {relation} ", f" {other} ") for other in RELATIONS if other != relation]
    for match in re.finditer("big|small", caption):
        other = "small" if match.group() == "big" else "big"
        found.append(caption[: match.start()] + other + caption[match.end() :])
    said = re.search(r"on an? (\w+) background", caption)
    if said:
        for colour in set(BACKGROUNDS) - {said.group(1)}:
            article = "an" if colour == "orange" else "a"
            found.append(caption.replace(said.group(), f"on {article} {colour} background"))
    return found


@given(scene_strategy)
def test_full_caption_says_all_six_facts_in_the_scenes_own_order(scene):
    caption = full_caption(scene)
    assert judge_caption(caption, scene) == Judgement(True, True, 6)
    (first, second), (size, other) = scene.nouns, scene.sizes
    assert re.fullmatch(
        rf"an? {size} {first} {scene.relation} an? {other} {second} on an? {scene.background} background", caption
    )


@given(scene_strategy)
def test_a_scene_told_from_the_other_side_is_the_same(scene):
    other = scene.swapped()
    assert other.swapped() == scene and OPPOSITE[OPPOSITE[scene.relation]] == scene.relation
    assert other.nouns == scene.nouns[::-1] and other != scene
    assert Scene.from_dict(scene.to_dict()) == scene


def test_captions_are_as_specific_as_peoples():
    rows = emoji_scenes("train", 1600, seed=11)
    drawn = {True: Counter(), False: Counter()}
    details = {True: 0, False: 0}
    for captions, facts in zip(rows["captions"], rows["scene"], strict=True):
        scene = Scene.from_dict(facts)
        alike = scene.sizes[0] == scene.sizes[1]
        for caption in captions:
            judged = judge_caption(caption, scene)
            assert judged.true
            drawn[alike][kind_of(caption)] += 1
            details[alike] += judged.details
    # One: 0.85 x (1 + 0.1 size) = 0.935; vague 1.1; two 2.2; relation (or background) 3.2; everything 6. By the shares
    # 0.187 + 0.11 + 0.66 + 0.96 + 0.6 = 2.517 and 0.374 + 0.11 + 0.33 + 0.8 + 0.6 = 2.214.
    for alike, shares, mean in ((True, (0.2, 0.1, 0.3, 0.3, 0.1), 2.517), (False, (0.4, 0.1, 0.15, 0.25, 0.1), 2.214)):
        total = sum(drawn[alike].values())
        # About 4,000 captions each: three standard deviations of a share of 0.4 are 0.023.
        found = {kind: count / total for kind, count in drawn[alike].items()}
        assert found == pytest.approx(dict(zip(STYLES, shares, strict=True)), abs=0.025)
        assert details[alike] / total == pytest.approx(mean, abs=0.08)
    captions = [caption for row in rows["captions"] for caption in row]
    assert sum(caption.startswith(OPENINGS) for caption in captions) / len(captions) == pytest.approx(0.25, abs=0.025)


def test_shares_decide_how_specific_captions_are():
    detailed = emoji_scenes("train", 300, seed=11, captions_per_image=2, shares=DETAILED_SHARES)
    assert all(len(row) == 2 for row in detailed["captions"])
    assert Counter(kind_of(c) for row in detailed["captions"] for c in row)["everything"] / 600 > 0.3
    full = emoji_scenes("train", 20, seed=11, shares=FULL_SHARES)
    assert {kind_of(caption) for row in full["captions"] for caption in row} == {"everything"}


def kind_of(caption: str) -> str:
    has_relation = any(f" {relation} " in caption for relation in RELATIONS)
    if has_relation or "background" in caption:
        return "everything" if has_relation and "background" in caption else "relation"
    return "vague" if " with " in caption else "two" if " and " in caption else "one"


def test_the_bigger_thing_is_usually_named_first():
    rng = random.Random(0)
    scene = Scene(("pizza", "dog"), ("small", "big"), "left of", "red")
    captions = [write_caption(scene, "two", rng) for _ in range(2000)]
    # 0.85 the bigger one, else half and half: 0.925
    assert sum(c.index("dog") < c.index("pizza") for c in captions) / 2000 == pytest.approx(0.925, abs=0.02)


# ----------------------------------------------------------------------------------------------------- the galleries


def test_same_seed_same_data_and_another_seed_another():
    for split in ("train", "test", "validation_twins"):
        first, again, other = (emoji_scenes(split, 16, seed) for seed in (3, 3, 4))
        assert first.remove_columns("image")[:] == again.remove_columns("image")[:]
        for a, b in zip(first["image"], again["image"], strict=True):
            assert (np.asarray(a) == np.asarray(b)).all()
        assert first["scene"][:] != other["scene"][:]
        assert not set(first["image_id"]) & set(other["image_id"])
    # A longer split begins with the shorter one.
    assert emoji_scenes("train", 4, 3)["captions"][:] == emoji_scenes("train", 16, 3)["captions"][:4]


def test_columns():
    rows = emoji_scenes("test", 3)
    assert rows.column_names == ["image", "captions", "image_id", "scene"]
    image = rows[0]["image"]
    assert image.size == (64, 64) and image.mode == "RGB"
    assert len(set(rows["image_id"])) == 3 and all(len(captions) == 5 for captions in rows["captions"])
    assert all(judge_caption(c, Scene.from_dict(row["scene"])).true for row in rows for c in row["captions"])


def test_no_scene_lies_in_two_splits():
    scenes = {
        "train": {canonical(scene) for seed in range(4) for scene in draw_scenes("train", 20_000, seed)},
        **{split: {canonical(s) for seed in range(3) for s in draw_scenes(split, 1000, seed)} for split in HELD_OUT},
    }
    names = list(scenes)
    for index, name in enumerate(names):
        for other in names[:index]:
            assert scenes[name].isdisjoint(scenes[other]), (name, other)
    # The twins' noun pairs are wholly their own.
    pairs = {name: {scene.nouns for scene in members} for name, members in scenes.items()}
    assert not (pairs["train"] | pairs["test"] | pairs["validation"]) & (
        pairs["test_twins"] | pairs["validation_twins"]
    )
    # Yet the words are the same: what is new in the test is how they come together.
    assert {noun for pair in pairs["train"] for noun in pair} == set(nouns())


@pytest.mark.parametrize("split", HELD_OUT)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gallery_holds_each_scene_once(split, seed):
    scenes = draw_scenes(split, 1000, seed)
    assert len({canonical(scene) for scene in scenes}) == len(scenes) == 1000


@pytest.mark.parametrize("split", ["validation_twins", "test_twins"])
def test_twins_differ_from_the_first_of_their_eight_in_one_or_two_facts(split):
    scenes = draw_scenes(split, 1000, seed=2)
    distances = Counter()
    for start in range(0, 1000, 8):
        first, *others = scenes[start : start + 8]
        distances.update(facts_that_differ(first, other) for other in others)
    assert set(distances) == {1, 2} and min(distances.values()) > 200
    assert len({scene.nouns for scene in scenes[::8]}) >= 60


def test_unknown_split_and_too_large_a_gallery():
    with pytest.raises(ValueError, match="no split 'val'.*validation, test"):
        emoji_scenes("val", 3)
    with pytest.raises(ValueError, match=f"{LARGEST_GALLERY + 1} test scenes are too many"):
        emoji_scenes("test", LARGEST_GALLERY + 1)
    assert len(draw_scenes("validation_twins", LARGEST_GALLERY, 0)) == LARGEST_GALLERY


# ------------------------------------------------------------------------------------------------------ the pictures


RED, YELLOW = (221, 46, 68), (255, 217, 131)  # of a tomato and of a banana


def thing_in(half: np.ndarray) -> tuple[str, int]:
    """Which of the two things lies in this part of a picture with a blue background, and its larger side in pixels."""
    # Gradient and grain move the background by at most 45.
    rows, columns = np.nonzero(np.abs(half.astype(int) - BACKGROUNDS["blue"]).max(axis=-1) > 50)
    colour = np.median(half[rows, columns], axis=0)
    tomato, banana = (np.abs(colour - known).max() for known in (RED, YELLOW))
    return ("tomato" if tomato < banana else "banana"), 1 + max(np.ptp(rows), np.ptp(columns))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("sizes", [("big", "small"), ("small", "big"), ("big", "big"), ("small", "small")])
def test_things_lie_where_and_as_large_as_the_scene_says(relation, sizes):
    scene = Scene(("tomato", "banana"), sizes, relation, "blue")
    if relation in ("right of", "below"):
        expected = (("banana", sizes[1]), ("tomato", sizes[0]))
    else:
        expected = (("tomato", sizes[0]), ("banana", sizes[1]))
    for seed in range(10):
        pixels = render(scene, seed)
        assert pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8
        halves = np.split(pixels, 2, axis=1 if relation in ("left of", "right of") else 0)
        for half, (noun, size) in zip(halves, expected, strict=True):
            found, extent = thing_in(half)
            assert found == noun
            # Small is 16 to 20 pixels, big 27 to 32; the art leaves a little of its square empty.
            assert (14 <= extent <= 20) if size == "small" else (24 <= extent <= 32), (extent, size, noun)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_background_has_its_colour(background):
    for seed in range(5):
        pixels = render(Scene(("dog", "cat"), ("small", "small"), "left of", background), seed).astype(float)
        edge = np.concatenate([pixels[:6].reshape(-1, 3), pixels[-6:].reshape(-1, 3)])  # small things end before it
        distance = {name: np.abs(edge.mean(axis=0) - colour).max() for name, colour in BACKGROUNDS.items()}
        assert min(distance, key=distance.get) == background
        assert distance[background] < 10
        assert edge.std(axis=0).min() > 3  # grain


def test_place_and_grain_vary_with_the_seed_alone():
    first, again, other = (render(SCENE, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).mean() > 0.5


def test_every_noun_has_a_picture_of_its_own():
    sprites = {noun: _sprite(noun, 32) for noun in nouns()}
    assert len({colour.tobytes() for colour, _ in sprites.values()}) == len(sprites) == 102
    assert min(coverage.mean() for _, coverage in sprites.values()) > 0.1
    assert {category for category, _ in nouns().values()} == set(CATEGORIES) and not set(nouns()) & set(CATEGORIES)
