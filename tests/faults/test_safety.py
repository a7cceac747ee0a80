"""What is downloaded runs no code, and a token stays where it was given."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import shutil
from pathlib import Path

import datasets
import pytest
import tiny
import torch
from datasets import Dataset, Features, Value
from PIL import Image
from transformers import VisionEncoderDecoderModel

from hf_distinct import ClipScorer
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.files import checkpoints

RECIPES = Path(__file__).parents[2] / "recipes"
TOKEN = "hf_" + "Secret" * 5


class Bomb:
    """Pickled, it makes a file of whoever loads it without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """What the bombs make; a bomb that could not go off would prove nothing."""
    path = tmp_path / "went off"
    torch.save(Bomb(path), tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    path.rmdir()
    return path


def test_a_captioner_with_a_pickle_for_weights_is_refused(tiny_models, tmp_path, mark):
    folder = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner"))
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises((pickle.UnpicklingError, OSError, ValueError)):
        VisionEncoderDecoderModel.from_pretrained(folder)
    assert not mark.exists()


def test_a_scorer_with_a_pickle_for_weights_is_refused(tiny_models, tmp_path, mark):
    folder = Path(shutil.copytree(tiny_models / "scorer", tmp_path / "scorer"))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"weight": Bomb(mark)}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        ClipScorer(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["rl_state.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_with_a_pickle_in_it_is_refused(make_trainer, tmp_path, mark, name):
    make_trainer(save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    torch.save({"state": Bomb(mark)}, checkpoint / name)
    checkpoints.seal(checkpoint, 1)  # whoever sends bombs can seal them, too
    with pytest.raises(pickle.UnpicklingError):
        make_trainer(max_steps=2).train(resume_from_checkpoint=str(checkpoint))
    assert not mark.exists()


CODE = "from pathlib import Path\nPath({mark!r}).mkdir()\nfrom transformers import PreTrainedTokenizerFast as Own\n"


def with_code(folder: Path, mark: Path) -> Path:
    """Give a folder a tokenizer that comes with its own code."""
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    path = folder / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    settings = json.loads(path.read_text()) | own
    path.write_text(json.dumps(settings))
    return folder


def test_code_that_a_captioner_brings_along_is_not_run(tiny_models, tmp_path, mark, monkeypatch):
    folder = with_code(Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner")), mark)
    monkeypatch.setattr("sys.argv", ["train.py", "--model_name_or_path", str(folder), "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="trust_remote_code"):
        runpy.run_path(str(RECIPES / "train.py"), run_name="__main__")
    assert not mark.exists()


def test_code_that_a_scorer_brings_along_is_not_run_even_if_its_config_says_so(tiny_models, tmp_path, mark):
    folder = with_code(Path(shutil.copytree(tiny_models / "scorer", tmp_path / "scorer")), mark)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        ClipScorer(str(folder))
    assert not mark.exists()


def test_a_reward_beside_a_downloaded_captioner_is_not_run(tiny_models, make_trainer, tmp_path, mark, monkeypatch):
    folder = Path(shutil.copytree(tiny_models / "captioner", tmp_path / "captioner"))
    for name in ("contrastive.py", "cider.py", "rewards.py"):
        (folder / name).write_text(CODE.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    make_trainer(reward=["contrastive"]).train()
    assert not mark.exists()


@pytest.mark.parametrize("side", [10_000, 15_000])  # beyond what PIL warns of, beyond what it opens
def test_a_picture_that_would_fill_the_memory_is_refused_by_name(tiny_models, tmp_path, caplog, side):
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    assert (tmp_path / "huge.png").stat().st_size < 100_000
    tiny.scenes(1)["image"][0].save(tmp_path / "fine.png")
    paths = [str(tmp_path / name) for name in ("huge.png", "fine.png")]
    features = Features({"image": datasets.Image(), "captions": [Value("string")], "image_id": Value("string")})
    columns = {"image": paths, "captions": [["a"], ["b"]], "image_id": ["huge", "fine"]}
    dataset = Dataset.from_dict(columns, features=features)
    kept, _ = embed_dataset(dataset, ClipScorer(str(tiny_models / "scorer")))
    assert kept["image_id"][:] == ["fine"]
    assert "huge.png' cannot be decoded" in caplog.text and "decompression bomb" in caplog.text


def test_a_token_is_in_nothing_that_a_run_leaves_or_says(make_trainer, tmp_path, capfd, caplog):
    trainer = make_trainer(
        hub_token=TOKEN, max_steps=2, save_strategy="steps", save_steps=1, log_level="debug", dataset=tiny.scenes(8)
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert trainer.args.hub_token == TOKEN  # whoever pushes still has it
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"training_args.bin", "complete.json", "trainer_state.json"} <= {path.name for path in files}
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err + caplog.text + repr(trainer.args) + trainer.args.to_json_string()
