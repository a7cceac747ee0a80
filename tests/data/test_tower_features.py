"""Features of a frozen tower: computed once, whatever happens meanwhile, and the views of a picture."""

from __future__ import annotations

import os
import random

import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageOps
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from hf_distinct.data import tower_features as room
from hf_distinct.data.tower_features import Views, tower_features


class Tower(nn.Module):
    """Says what it sees, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5), requires_grad=False)
        self.seen = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixels)
        return pixels[:, :2].flatten(1) * self.weight


def plain(image: Image.Image) -> torch.Tensor:
    return pil_to_tensor(image.resize((4, 2))).float()


def noisy(image: Image.Image) -> torch.Tensor:
    return plain(image) + 100 * torch.rand(3, 2, 4) + random.random()


@pytest.fixture
def pictures(tmp_path):
    files = []
    for number in range(7):
        files.append(str(tmp_path / f"{number}.png"))
        picture = Image.effect_noise((4, 2), 90).convert("RGB")
        picture.save(files[-1])
    kinds = {"image": ImageFeature(decode=False), "captions": [Value("string")], "image_id": Value("string")}
    rows = {"image": files, "captions": [["a"]] * 7, "image_id": list("abcdefg")}
    return Dataset.from_dict(rows, features=Features(kinds))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(room, "PART_ROWS", 3)


def of(dataset, number):
    return Image.open(dataset[number]["image"]["path"])


def test_pictures_and_their_mirror_images_are_computed_once(pictures, tmp_path):
    tower, views = Tower(), Views(plain, mirror=True, count=2)
    kept, features = tower_features(pictures, tower, views, tmp_path / "cache", batch_size=2)
    assert kept is pictures and features.shape == (7, 2, 16) and features.dtype == torch.float16
    for number in range(7):
        for view, image in enumerate((of(pictures, number), ImageOps.mirror(of(pictures, number)))):
            assert torch.equal(features[number, view].float(), tower(plain(image)[None])[0].half().float())
    seen = tower.seen
    _, again = tower_features(pictures, tower, views, tmp_path / "cache")
    assert tower.seen == seen and torch.equal(again, features)
    tower.weight.mul_(2)
    _, other = tower_features(pictures, tower, views, tmp_path / "cache")
    assert torch.allclose(other.float(), 2 * features.float(), rtol=1e-2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_goes_on_with_the_same_views(pictures, tmp_path, workers):
    views = Views(plain, noisy, mirror=True, count=4)
    _, whole = tower_features(pictures, Tower(), views, tmp_path / "whole", seed=3, num_workers=workers)

    class Killed(Tower):
        def forward(self, pixels):
            if self.seen > 12:
                raise KeyboardInterrupt
            return super().forward(pixels)

    with pytest.raises(KeyboardInterrupt):
        tower_features(pictures, Killed(), views, tmp_path / "cut", seed=3)
    torch.manual_seed(9)  # what chance did before is not seen
    tower = Tower()
    _, features = tower_features(pictures, tower, views, tmp_path / "cut", seed=3)
    assert tower.seen == 1 + 4 * 4  # a trial, and the last two parts of three
    assert torch.equal(features, whole)
    _, other = tower_features(pictures, Tower(), views, tmp_path / "cut", seed=4)
    assert torch.equal(other[:, :2], whole[:, :2]) and not torch.equal(other[:, 2:], whole[:, 2:])


def test_a_broken_picture_is_left_out_and_named(pictures, tmp_path, caplog):
    (tmp_path / "4.png").write_bytes(b"no picture")
    views = Views(plain, count=1)
    kept, features = tower_features(pictures, Tower(), views, tmp_path / "cache")
    assert kept["image_id"] == list("abcdfg") and len(features) == 6 and "e: " in caplog.text
    assert torch.equal(features[4, 0].float(), (plain(of(pictures, 5))[:2].flatten() / 2).half().float())
    with pytest.raises(ValueError, match="e: "):
        tower_features(pictures, Tower(), views, tmp_path / "cache", strict=True)


def test_too_large_features_are_refused(pictures, tmp_path):
    tower = Tower()
    tower.weight.fill_(1e6)
    with pytest.raises(ValueError, match="too large for half precision"):
        tower_features(pictures, tower, Views(plain, count=1), tmp_path)


def test_only_views_that_may_be_mirrored_are():
    rng = random.Random(0)
    assert {Views(plain).draw(rng) for _ in range(50)} == {0}
    assert {Views(plain, mirror=True).draw(rng) for _ in range(50)} == {0, 1}
    assert {Views(plain, mirror=True, count=2).draw(rng, turned=False) for _ in range(50)} == {0}
    assert {Views(plain, noisy, mirror=True, count=6).draw(rng, turned=False) for _ in range(50)} == {0, 2, 4}
    assert {Views(plain, noisy, mirror=True).draw(rng) for _ in range(50)} == {2, 3}
    assert {Views(plain, noisy).draw(rng) for _ in range(50)} == {2}
    picture = Image.effect_noise((4, 2), 90).convert("RGB")
    assert torch.equal(Views(plain, mirror=True).make(picture, 1), plain(ImageOps.mirror(picture)))
    assert not torch.equal(Views(plain, noisy).make(picture, 2), Views(plain, noisy).make(picture, 2))


@pytest.mark.parametrize(
    ("mirror", "count", "message"), [(False, 2, r"only one view \(two with"), (True, 3, "only two different views")]
)
def test_more_views_than_there_are_is_said(mirror, count, message):
    with pytest.raises(ValueError, match=f"cached_views={count}, but without --augmentation .* {message}"):
        Views(plain, mirror=mirror, count=count)


def test_a_process_that_is_overtaken_takes_what_the_other_has_put_together(pictures, tmp_path, monkeypatch):
    """The faster one removes the parts while the slower one is about to give its last part a name."""
    views, folder, sync = Views(plain, count=1), tmp_path / "features", os.fsync
    faster = []

    def overtaken(file):
        sync(file)
        if not faster:
            faster.append(None)
            faster[0] = tower_features(pictures, Tower(), views, folder)

    monkeypatch.setattr(os, "fsync", overtaken)
    _, features = tower_features(pictures, Tower(), views, folder)
    assert torch.equal(features, faster[0][1])
    assert sorted(path.name for path in next(folder.iterdir()).iterdir()) == ["features.npy", "rows.json"]
