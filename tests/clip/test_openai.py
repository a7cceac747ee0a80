"""OpenAI's TorchScript archives in miniature: read to the bit, and without running what they hold."""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
import zipfile

import open_clip
import pytest
import torch
from open_clip import factory

from hf_distinct.clip.openai import OWN_NUMBERS, read_openai_weights
from hf_distinct.scorer import ClipScorer

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


class Bomb(torch.nn.Module):
    """A scripted module that writes a file when it is loaded by torch."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An archive as OpenAI published them, weights in half precision as there, and its weights."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(SMALL), quick_gelu=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    weights = model.state_dict()
    for name, number in zip(OWN_NUMBERS, (32, 77, 49408), strict=True):
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(number))
    mask = model._buffers.pop("attn_mask")
    model.attn_mask = mask
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, 3, 32, 32), open_clip.tokenize(["a dog"]))
        traced = torch.jit.trace(model, example, check_trace=False)
    for name, value in traced.named_parameters():
        if name.endswith(("c_fc.weight", "c_proj.weight")):
            weights[name] = weights[name].half()
            value.data = value.data.half()
    path = tmp_path_factory.mktemp("openai") / "ViT-B-32.pt"
    traced.save(str(path))
    return path, weights


def test_an_archive_gives_its_weights_to_the_bit(archive):
    path, weights = archive
    found = read_openai_weights(path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in weights.items())


def test_an_archive_by_the_plain_name_is_the_model_with_quickgelu(archive, monkeypatch):
    path, weights = archive
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", copy.deepcopy(SMALL))
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", copy.deepcopy(SMALL) | {"quick_gelu": True})
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    model.load_state_dict(weights)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.encode_image(pixels, normalize=True)
    for name in ("ViT-B-32", "ViT-B-32-quickgelu"):
        assert torch.equal(ClipScorer(name, pretrained=path).encode_images(pixels), expected)


def test_other_files_are_left_to_open_clip(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pt")
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    torch.save([1, 2], tmp_path / "c.pt")
    for path in tmp_path.iterdir():
        assert read_openai_weights(path) is None


def test_code_in_an_archive_is_not_run(tmp_path):
    mark = tmp_path / "went off"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Bomb(str(mark))).save(str(tmp_path / "bomb.pt"))
        torch.jit.load(str(tmp_path / "bomb.pt"))
    assert mark.exists()  # else it would prove nothing
    mark.unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        ClipScorer(f"ViT-B-32:{tmp_path / 'bomb.pt'}")
    assert not mark.exists()


def rewritten(source, target, **changes):
    """An archive again, with other settings of a zip file or another pickle."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", changes.get("how", zipfile.ZIP_STORED)) as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name.rpartition("/")[2], old.read(name)))
    return target


def test_pickles_and_compressed_archives_are_refused(archive, tmp_path):
    bomb = pickle.dumps(shutil.rmtree)
    with pytest.raises(pickle.UnpicklingError, match=r"it contains shutil\.rmtree"):
        read_openai_weights(rewritten(archive[0], tmp_path / "bomb.pt", **{"data.pkl": bomb}))
    with pytest.raises(pickle.UnpicklingError, match="is compressed"):
        read_openai_weights(rewritten(archive[0], tmp_path / "zipped.pt", how=zipfile.ZIP_DEFLATED))
