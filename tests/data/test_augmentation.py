"""Random views of pictures: functions of their key alone."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from hf_distinct.data.augmentation import Augmentation

LEFT_IS_BLACK = Image.fromarray(np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 48, 0).repeat(3, 2))


def test_a_view_is_a_function_of_its_key_and_leaves_the_generator_alone():
    views, key = Augmentation((0.3, 0.8)), "0:1:a.jpg"
    first = views(LEFT_IS_BLACK, key)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = views(LEFT_IS_BLACK, key)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != views(LEFT_IS_BLACK, "0:2:a.jpg").tobytes()


def test_views_have_the_size_that_is_asked_for_or_the_pictures_own():
    assert Augmentation((0.3, 0.8))(LEFT_IS_BLACK, "x").size == (64, 48)
    assert Augmentation((0.3, 0.8), 20)(LEFT_IS_BLACK, "x").size == (20, 20)


def test_half_of_them_are_mirrored_and_parts_are_as_large_as_asked():
    spans = []
    for key in range(60):
        row = np.asarray(Augmentation((0.25, 0.25))(LEFT_IS_BLACK, str(key)).convert("L"))[0].astype(float)
        spans.append(row[-1] - row[0])
    assert 20 <= sum(span < 0 for span in spans) <= 40
    # A quarter of the area is about half of the width, give or take the ratio; colours vary by a fifth three times.
    assert 60 < np.abs(spans).mean() < 200
