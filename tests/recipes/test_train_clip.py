"""CLIP training from nothing and from a trained model, on emoji scenes and on one's own pictures."""

import importlib.util
import json
import os
import random
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import forked
import open_clip
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from open_clip import factory
from open_clip.pretrained import _PRETRAINED
from PIL import Image

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.judging import judge_caption
from hf_distinct.data.emoji.scenes import Scene
from hf_distinct.scorer import ClipScorer

TOWER = json.dumps({"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64})
train = partial(forked.run, "train_clip.py", "--output_dir")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_clip", forked.RECIPES / "train_clip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


BARE, FULL = "a dog and a banana", "a big dog left of a small banana on a red background"
ROW = {"scene": Scene(("dog", "banana"), ("big", "small"), "left of", "red").to_dict(), "captions": [BARE, FULL]}


def test_in_a_drill_the_kind_of_lie_chooses_the_caption(recipe: ModuleType) -> None:
    images = recipe.CaptionedImages(None, None, kind_weights=[3, 0, 0, 1, 0, 0], drill=1.0)
    rng = random.Random(0)  # kinds: relation, size, swap, shuffle, drop, cut
    drawn = Counter(images.draw(ROW, rng)[1] == FULL.replace("left", "right") for _ in range(800))
    assert drawn[True] / 800 == pytest.approx(0.75, abs=0.05)  # though only one of the captions has a relation


def test_outside_a_drill_captions_are_drawn_as_they_come(recipe: ModuleType) -> None:
    images = recipe.CaptionedImages(None, None, kind_weights=[3, 0, 0, 1, 0, 0], drill=0.0)
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


def test_a_caption_that_offers_no_negative_has_none(recipe: ModuleType) -> None:
    for drill in (0.0, 1.0):
        images = recipe.CaptionedImages(None, None, kind_weights=[1, 0, 0, 0, 0, 0], drill=drill)
        assert images.draw({"captions": ["dogs"]}, random.Random(0)) == ("dogs", "")


def test_from_nothing_then_on_ones_own_pictures(tmp_path: Path) -> None:
    small = ["--max_steps", 2, "--batch_size", 8, "--eval_steps", 2]
    train(tmp_path / "new", *small, "--train_size", 32, "--vision_cfg", TOWER)
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert {"t2i_R@1", "prefers_truth/relation", "prefers_truth/drop"} <= set(metrics)

    forked.run("make_example.py", tmp_path / "pictures", 40)
    own = ["--dataset", tmp_path / "pictures", "--model", tmp_path / "new", "--hard_negatives", "true"]
    train(tmp_path / "tuned", *small, *own)
    good = {file.name: file.read_bytes() for file in (tmp_path / "tuned").iterdir()}
    for model in (["--model", tmp_path / "new"], ["--vision_cfg", TOWER]):  # over a good one of before
        data = ["--dataset", tmp_path / "pictures", *model]
        failed = train(tmp_path / "tuned", "--max_steps", 9, "--batch_size", 8, *data, "--lr", 1e30, fails=True)
        assert "The training has diverged and ends here, and this model is not saved" in failed.stderr
        assert {file.name: file.read_bytes() for file in (tmp_path / "tuned").iterdir()} == good
    assert ClipScorer(str(tmp_path / "tuned")).fingerprint != ClipScorer(str(tmp_path / "new")).fingerprint


def test_a_signal_leaves_the_model_of_its_step(recipe: ModuleType, tmp_path: Path, monkeypatch: Any, caplog) -> None:
    plain, calls = recipe.loss_of, []

    def loss_of(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain(*args)

    monkeypatch.setattr(recipe, "loss_of", loss_of)
    flags = ["--train_size", 16, "--batch_size", 8, "--max_steps", 9, "--vision_cfg", TOWER, "--output_dir", tmp_path]
    monkeypatch.setattr("sys.argv", ["train_clip.py", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        recipe.main()
    assert left.value.code == 128 + signal.SIGUSR1 and len(calls) == 2
    assert f"stopped by SIGUSR1 after step 2 of 9: {tmp_path} has the model of this step." in caplog.text
    ClipScorer(str(tmp_path))


def test_a_tuned_openai_model_keeps_its_activation(recipe: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    small = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", small)
    torch.save(open_clip.CLIP(**small).state_dict(), tmp_path / "openai.pt")
    tag = _PRETRAINED["ViT-B-32"]["openai"] | {"file": tmp_path / "openai.pt"}
    monkeypatch.setitem(_PRETRAINED["ViT-B-32"], "openai", tag)
    settings = recipe.Settings(model="ViT-B-32:openai", output_dir=str(tmp_path / "tuned"))
    model, model_cfg, preprocess_cfg, _, _ = recipe.published_model(settings)
    recipe.save_open_clip(model, settings.output_dir, model_cfg, preprocess_cfg)
    tuned = ClipScorer(settings.output_dir)
    assert "QuickGELU" in repr(tuned.model.transformer) and "QuickGELU" in repr(tuned.model.visual)
    picture = Image.linear_gradient("L").convert("RGB")
    assert torch.equal(tuned.transform(picture), ClipScorer("ViT-B-32:openai").transform(picture))


def test_too_few_images_for_a_batch_are_counted(tmp_path: Path) -> None:
    failed = train(tmp_path, "--train_size", 10, "--batch_size", 16, "--max_steps", 1, fails=True)
    assert "10 images do not fill a batch of 16" in failed.stderr


def test_pictures_that_cannot_be_decoded_are_named_and_replaced(recipe: ModuleType, tmp_path: Path, caplog) -> None:
    scenes = emoji_scenes("train", 4, seed=0)
    files = []
    for number, image in enumerate(scenes["image"]):
        files.append(str(tmp_path / f"{number}.png"))
        image.save(files[-1])
    Path(files[1]).write_bytes(b"no picture")
    kinds = {"image": ImageFeature(decode=False), "captions": [Value("string")], "image_id": Value("string")}
    rows = {"image": files, "captions": scenes["captions"], "image_id": list("abcd")}
    dataset = Dataset.from_dict(rows, features=Features(kinds))
    images = recipe.CaptionedImages(dataset, lambda image: image.size)
    assert [images[number][0] for number in range(4)] == [(64, 64)] * 4
    assert "image 'b' cannot be trained on" in caplog.text
    broken = recipe.CaptionedImages(dataset.select([1]), None)
    with pytest.raises(
        ValueError, match="20 pictures one after the other cannot be decoded, the last one is image 'b'"
    ):
        broken[0]


def test_positions_are_spread_where_there_are_any(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match="--spread_positions has no effect on an image tower without"):
        recipe.tell_places_apart(recipe.new_model(recipe.Settings(), [BARE])[0])
    pool = json.dumps({"layers": [1, 1, 1, 1], "width": 12, "head_width": 48, "image_size": 64})
    model = recipe.new_model(recipe.Settings(vision_cfg=pool), [BARE])[0]
    before = model.visual.attnpool.positional_embedding.detach().clone()
    recipe.tell_places_apart(model)
    assert (model.visual.attnpool.positional_embedding == 10 * before).all()


def test_a_published_model_is_tuned_at_a_lower_rate(recipe: ModuleType) -> None:
    assert [recipe.Settings(model=model, lr=lr).lr for model, lr in [(None, None), ("x", None), ("x", 3.0)]] == [
        2e-3, 1e-5, 3.0
    ]  # fmt: skip
