"""A CLIP of pretrained towers: its weights, what is frozen, and the folder that needs nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from clips import CAPTIONS, IMAGE_TOWER, build
from clips import towers as towers
from PIL import Image
from transformers import AutoModel, GPT2Config

from hf_distinct import ClipScorer
from hf_distinct.training.clip_building import (
    FrozenText,
    image_tower_of,
    small_clip,
    split_image_tower,
    tell_places_apart,
    text_tower_of,
)
from hf_distinct.training.finite import not_finite

VISION = {"timm_model_name": IMAGE_TOWER, "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}


@pytest.mark.both_ends
@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_a_folder_needs_neither_tower_afterwards(towers: Path, tmp_path: Path, projection: str) -> None:
    copies = Path(shutil.copytree(towers, tmp_path / "towers"))
    clip = build(copies, projection=projection)
    clip.save(tmp_path / "clip")
    shutil.rmtree(copies)
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "clip").glob("*.json"))
    scorer = ClipScorer(shutil.move(tmp_path / "clip", tmp_path / "moved"))
    picture = Image.linear_gradient("L").convert("RGB").resize((90, 50))
    pixels = clip.transform()(picture)
    assert torch.equal(scorer.transform(picture), pixels)
    with torch.no_grad():
        image = clip.model.eval().encode_image(pixels[None], normalize=True)
        texts = clip.model.encode_text(clip.tokenize(CAPTIONS), normalize=True)
    assert torch.allclose(scorer.encode_images(pixels[None]), image, atol=5e-3)  # weights are saved in half precision
    assert torch.allclose(scorer.encode_texts(CAPTIONS), texts, atol=5e-3)


def test_towers_are_pretrained(towers: Path) -> None:
    clip = build(towers)
    image, text = torch.load(towers / "image.pth"), AutoModel.from_pretrained(towers / "text").state_dict()
    trunk = clip.model.visual.trunk.state_dict()
    assert len(trunk) > 50 and all(torch.equal(value, image[name]) for name, value in trunk.items())
    inside = clip.model.text.transformer.state_dict()
    assert len(inside) > 15 and all(torch.equal(value, text[name]) for name, value in inside.items())


def test_the_whole_of_a_wide_picture_is_seen(towers: Path) -> None:
    picture = Image.new("RGB", (90, 30))
    picture.paste((255, 255, 255), (0, 0, 12, 30))  # a crop to a square would lose this stripe
    assert build(towers).transform()(picture)[0, :, 0].min() > 0.9


def test_without_a_text_tower_there_is_a_small_one_of_the_captions_words(towers: Path, tmp_path: Path) -> None:
    clip = build(towers, text=None)
    clip.save(tmp_path)
    assert ClipScorer(tmp_path).embed_dim == 24
    assert clip.tokenize(["dog zebra"])[0, 1] != clip.tokenize(["zebra dog"])[0, 1]  # one of them is unknown


def test_text_towers_of_other_kinds_are_refused(towers: Path, tmp_path: Path) -> None:
    shutil.copytree(towers / "text", tmp_path / "text")
    GPT2Config().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="text is a gpt2, but open_clip supports only these text towers: bert, "):
        build(towers, text=str(tmp_path / "text"))  # an absolute path


@pytest.mark.parametrize("kind", ["towers", "small"])
def test_a_frozen_tower_keeps_weights_and_statistics(towers: Path, kind: str) -> None:
    clip = build(towers) if kind == "towers" else small_clip(VISION, 24, CAPTIONS)
    model = clip.model.train()
    for tower in (image_tower_of(model), text_tower_of(model)):
        tower.freeze(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=1.0)
    pixels = torch.rand(4, 3, 64, 64)
    loss = model.encode_image(pixels).square().sum() + model.logit_scale
    if kind == "towers":
        loss = loss + model.encode_text(clip.tokenize(CAPTIONS)).square().sum()
    loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not_finite(model.state_dict().items()) is None
    projections = ("visual.head.", "text.proj.", "logit_scale")
    assert changed and all(name.startswith(projections) for name in changed)
    assert any(name.startswith("visual.head.") for name in changed)
    image_tower_of(model).freeze(False)
    model.train()
    image_tower_of(model).keep_statistics()
    model.encode_image(pixels).sum().backward()
    assert model.visual.trunk.conv_stem.weight.grad is not None
    means = {name: value for name, value in model.state_dict().items() if name.endswith("running_mean")}
    assert means and all(torch.equal(value, before[name]) for name, value in means.items())


def test_positions_are_spread_where_there_are_any() -> None:
    with pytest.raises(ValueError, match="--spread_positions has no effect on an image tower without"):
        tell_places_apart(small_clip(VISION, 16, ["a dog"]).model)
    pool = {"layers": [1, 1, 1, 1], "width": 12, "head_width": 48, "image_size": 64}
    model = small_clip(pool, 16, ["a dog"]).model
    before = model.visual.attnpool.positional_embedding.detach().clone()
    tell_places_apart(model)
    assert (model.visual.attnpool.positional_embedding == 10 * before).all()


@pytest.mark.parametrize("thawed", [0, 1, 2])
def test_both_parts_of_a_divided_tower_give_what_the_whole_gives(towers: Path, thawed: int) -> None:
    model = build(towers).model.eval()
    frozen, rest = split_image_tower(model, thawed)
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rest(frozen(pixels)), model.encode_image(pixels))
    trained = {
        name for name, each in model.visual.trunk.named_parameters() if id(each) in set(map(id, rest.parameters()))
    }
    assert (not trained) == (thawed == 0)
    assert {name.split(".")[0] for name in trained} <= {"conv_head", "bn2", "blocks"}
    assert any(name.startswith("blocks.") for name in trained) == (thawed == 2)


def test_towers_that_cannot_be_divided_are_refused(towers: Path) -> None:
    with pytest.raises(ValueError, match="image_thawed_stages=99 should be less than the . stages"):
        split_image_tower(build(towers).model, 99)
    resnet = small_clip(VISION | {"timm_model_name": "test_resnet"}, 8, CAPTIONS).model
    with pytest.raises(ValueError, match="--image_thawed_stages cannot divide a ResNet"):
        split_image_tower(resnet, 1)
    vit = small_clip({"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}, 8, CAPTIONS)
    with pytest.raises(ValueError, match="--image_thawed_stages needs a timm image tower"):
        split_image_tower(vit.model, 1)


@pytest.mark.parametrize("projection", ["mlp", "linear"])
def test_features_of_an_image_are_dropped_at_random_in_training_only(towers, tmp_path, projection):
    clip = build(towers, projection=projection)
    assert isinstance(clip.model.visual.head[0], torch.nn.Dropout) and clip.model.visual.head[0].p == 0.1
    clip.save(tmp_path)
    pixels, scorer = torch.rand(1, 3, 128, 128), ClipScorer(tmp_path)
    embeds = torch.nn.functional.normalize(clip.model.eval().encode_image(pixels), dim=-1)
    assert torch.allclose(scorer.encode_images(pixels), embeds, atol=1e-2)


def test_a_frozen_text_tower_gives_what_the_projection_reads(towers):
    clip = build(towers)
    clip.model.eval()
    frozen, token_ids = FrozenText(clip.model).eval(), clip.tokenize(["two cats", "a black dog runs on the grass"])
    features = frozen(token_ids)
    assert features.shape == (2, 16)
    assert torch.allclose(clip.model.text.proj(features), clip.model.encode_text(token_ids), atol=1e-6)
    assert set(frozen.state_dict()) == {f"transformer.{name}" for name in clip.model.text.transformer.state_dict()}


def test_a_text_tower_of_its_own_cannot_be_frozen_apart(towers):
    with pytest.raises(ValueError, match="--cached_captions needs a Hugging Face text tower"):
        FrozenText(build(towers, text=None).model)
