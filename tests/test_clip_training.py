"""Rows with hard negatives, the loss, and the measures of a CLIP's training."""

import random
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from hf_distinct.clip_training import EMOJI_RULES, CaptionedImages
from hf_distinct.data.emoji_scenes import Scene, emoji_scenes, judge_caption
from hf_distinct.tower_features import Views

SIZES = Views(lambda image: image.size)  # type: ignore[arg-type,return-value]

BARE, FULL = "a dog and a banana", "a big dog left of a small banana on a red background"
ROW = {"scene": Scene(("dog", "banana"), ("big", "small"), "left of", "red").to_dict(), "captions": [BARE, FULL]}


def test_in_a_drill_the_kind_of_lie_chooses_the_caption() -> None:
    images = CaptionedImages(None, SIZES, EMOJI_RULES, kind_weights=[3, 0, 0, 1, 0, 0], drill=1.0)
    rng = random.Random(0)  # kinds: relation, size, swap, shuffle, drop, cut
    drawn = Counter(images.draw(ROW, rng)[1] == FULL.replace("left", "right") for _ in range(800))
    assert drawn[True] / 800 == pytest.approx(0.75, abs=0.05)  # though only one of the captions has a relation


def test_outside_a_drill_captions_are_drawn_as_they_come() -> None:
    images = CaptionedImages(None, SIZES, EMOJI_RULES, kind_weights=[3, 0, 0, 1, 0, 0], drill=0.0)
    rng = random.Random(0)
    drawn = [images.draw(ROW, rng) for _ in range(800)]
    assert sum(caption == BARE for caption, _ in drawn) / 800 == pytest.approx(0.5, abs=0.05)
    flipped = [negative == FULL.replace("left", "right") for caption, negative in drawn if caption == FULL]
    assert sum(flipped) / len(flipped) == pytest.approx(0.75, abs=0.06)
    shuffled = {negative for caption, negative in drawn if caption == BARE} - {""}  # now and then the words fall right
    assert len(shuffled) > 20
    for negative in shuffled:  # no relation to flip: always the other kind
        assert sorted(negative.split()) == sorted(BARE.split())
        assert not judge_caption(negative, Scene.from_dict(ROW["scene"])).true


def test_a_caption_that_offers_no_negative_has_none() -> None:
    for drill in (0.0, 1.0):
        images = CaptionedImages(None, SIZES, EMOJI_RULES, kind_weights=[1, 0, 0, 0, 0, 0], drill=drill)
        assert images.draw({"captions": ["dogs"]}, random.Random(0)) == ("dogs", "")


def test_pictures_that_cannot_be_decoded_are_named_and_replaced(tmp_path: Path, caplog) -> None:
    scenes = emoji_scenes("train", 4, seed=0)
    files = []
    for number, image in enumerate(scenes["image"]):
        files.append(str(tmp_path / f"{number}.png"))
        image.save(files[-1])
    Path(files[1]).write_bytes(b"no picture")
    kinds = {"image": ImageFeature(decode=False), "captions": [Value("string")], "image_id": Value("string")}
    rows = {"image": files, "captions": scenes["captions"], "image_id": list("abcd")}
    dataset = Dataset.from_dict(rows, features=Features(kinds))
    images = CaptionedImages(dataset, SIZES)
    assert [images[number][0] for number in range(4)] == [(64, 64)] * 4
    assert "image 'b' cannot be trained on" in caplog.text
    broken = CaptionedImages(dataset.select([1]), SIZES)
    with pytest.raises(
        ValueError, match="20 pictures one after the other cannot be decoded, the last one is image 'b'"
    ):
        broken[0]
