"""Weights of image towers from files: by name, in order, refused where they do not fit, and never run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_distinct.clip.image_towers import COUNTER, load_image_tower, load_image_weights
from hf_distinct.files.model_names import packaged

NAME = "test_efficientnet"


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = timm.create_model(NAME)
    with torch.no_grad(), torch.random.fork_rng():
        for value in tower.state_dict().values():  # statistics of a BatchNorm, too, which are 0 and 1 in a new one
            if value.is_floating_point():
                value.add_(torch.rand_like(value) / 10)
    return tower.eval()


def renamed(tower):
    """As another implementation has it: other names, no counters, the same order."""
    state = {name: value for name, value in tower.state_dict().items() if not name.endswith(COUNTER)}
    return {f"_layer{number}.{name.rpartition('.')[2]}": value for number, (name, value) in enumerate(state.items())}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("names", ["own", "other", "own, backwards"])
def test_the_classifier_answers_as_it_did(tower, names, suffix, tmp_path):
    state = renamed(tower) if names == "other" else dict(tower.state_dict())
    if names == "own, backwards":
        state = dict(reversed(state.items()))
    if suffix == "safetensors" and names == "other":
        pytest.skip("safetensors does not keep the order")
    path = tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(load_image_tower(NAME, path)(pixels), tower(pixels))


def test_what_does_not_fit_is_named(tower, tmp_path):
    path, state = tmp_path / "weights.pth", renamed(tower)
    names = list(state)

    def refused(state, message):
        torch.save(state, path)
        other = timm.create_model(NAME)
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_image_weights(other, path)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())

    refused(
        {name: state[name] for name in names[:-1]},
        f"weights.pth does not .* {len(names) - 1} tensors, the tower {len(names)}",
    )
    refused(
        state | {names[0]: state[names[0]][..., :1]},
        r"_layer0.weight of shape .* is in the place of conv_stem.weight",
    )
    swapped = [names[0], names[2], names[1], *names[3:]]  # BatchNorm's weight and bias, which have the same shape
    refused({name: state[name] for name in swapped}, "_layer2.bias of shape .* is in the place of bn1.weight")
    refused({"epoch": 3}, "contains no state dict")


def test_a_file_of_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "went off",)

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(ValueError, match="weights.pth cannot be read as tensors"):
        load_image_tower(NAME, tmp_path / "weights.pth")
    assert not (tmp_path / "went off").exists()


def test_names_that_lead_nowhere_are_said(tmp_path):
    with pytest.raises(ValueError, match="timm has no image model 'resnet51x'"):
        load_image_tower("resnet51x", tmp_path)
    with pytest.raises(ValueError, match="There is no weights file"):
        load_image_tower(NAME, tmp_path)


def test_files_of_an_installed_package_are_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models" / "a.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged("package:some_weights/models/a.pth") == str(package / "models" / "a.pth")
    assert packaged("some/folder") == "some/folder"
    with pytest.raises(ValueError, match="has no 'models/b.pth'"):
        packaged("package:some_weights/models/b.pth")
    with pytest.raises(ValueError, match="has no '../some_weights/models/a.pth'|has no '../'"):
        packaged("package:some_weights/../")
    with pytest.raises(ValueError, match=r"the Python package 'no_such_one' is not installed.*\[photos\]"):
        packaged("package:no_such_one/x")
