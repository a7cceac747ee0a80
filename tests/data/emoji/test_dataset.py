"""Emoji scenes as a dataset."""

import numpy as np
import pytest

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.judging import judge_caption
from hf_distinct.data.emoji.scenes import LARGEST_GALLERY, Scene, draw_scenes


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


def test_unknown_split_and_too_large_a_gallery():
    with pytest.raises(ValueError, match="no split 'val'.*validation, test"):
        emoji_scenes("val", 3)
    with pytest.raises(ValueError, match=f"{LARGEST_GALLERY + 1} test scenes are too many"):
        emoji_scenes("test", LARGEST_GALLERY + 1)
    assert len(draw_scenes("validation_twins", LARGEST_GALLERY, 0)) == LARGEST_GALLERY
