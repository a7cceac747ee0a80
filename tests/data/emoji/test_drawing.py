"""The pictures of emoji scenes."""

import numpy as np
import pytest

from hf_distinct.data.emoji.drawing import render
from hf_distinct.data.emoji.scenes import BACKGROUNDS, CATEGORIES, RELATIONS, Scene, nouns

SCENE = Scene(("dog", "pizza"), ("big", "small"), "left of", "red")


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
    backgrounds = ("blue", "red")
    pictures = {
        noun: [render(Scene((noun, "dog"), ("big", "small"), "left of", each), 0)[:, :32] for each in backgrounds]
        for noun in nouns()
    }
    assert len({picture.tobytes() for picture, _ in pictures.values()}) == len(pictures) == 102
    for noun, (one, other) in pictures.items():  # where they are alike, there lies the thing
        assert (np.abs(one.astype(int) - other).max(axis=-1) < 3).mean() > 0.03, noun
    assert {category for category, _ in nouns().values()} == set(CATEGORIES) and not set(nouns()) & set(CATEGORIES)
