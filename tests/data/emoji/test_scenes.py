"""The scenes of a split: each once, none in two splits, and twins that differ in little."""

from collections import Counter

import pytest

from hf_distinct.data.emoji.scenes import OPPOSITE, Scene, draw_scenes, nouns

HELD_OUT = ("validation", "test", "validation_twins", "test_twins")


def canonical(scene: Scene) -> Scene:
    """Both tellings of a scene as one."""
    return scene if scene.nouns[0] < scene.nouns[1] else scene.swapped()


def facts_that_differ(scene: Scene, other: Scene) -> int:
    assert scene.nouns == other.nouns
    pairs = [*zip(scene.sizes, other.sizes, strict=True), (scene.relation, other.relation)]
    return sum(a != b for a, b in [*pairs, (scene.background, other.background)])


def test_a_scene_told_from_the_other_side_is_the_same():
    for scene in draw_scenes("train", 50, 0):
        other = scene.swapped()
        assert other.swapped() == scene and OPPOSITE[OPPOSITE[scene.relation]] == scene.relation
        assert other.nouns == scene.nouns[::-1] and other != scene
        assert Scene.from_dict(scene.to_dict()) == scene


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
