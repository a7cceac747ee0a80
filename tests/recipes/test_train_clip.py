"""CLIP training from nothing and from a trained model, on emoji scenes and on one's own pictures."""

import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import forked
import open_clip
import pytest
import torch
from clips import IMAGE_TOWER
from clips import towers as towers
from open_clip import factory
from open_clip.pretrained import _PRETRAINED
from PIL import Image

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.files import run_lock
from hf_distinct.scorer import ClipScorer
from hf_distinct.training import clip_trainer
from hf_distinct.training.clip_building import published_clip

TOWER = json.dumps({"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64})
train = partial(forked.run, "train_clip.py", "--output_dir")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return forked.module("train_clip")


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
        assert "The training has diverged and is stopped; this model is not saved" in failed.stderr
        assert {file.name: file.read_bytes() for file in (tmp_path / "tuned").iterdir()} == good
    assert ClipScorer(str(tmp_path / "tuned")).fingerprint != ClipScorer(str(tmp_path / "new")).fingerprint


def test_a_signal_leaves_the_model_of_its_step(recipe: ModuleType, tmp_path: Path, monkeypatch: Any, caplog) -> None:
    plain, calls = clip_trainer.loss_of, []

    def loss_of(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain(*args)

    monkeypatch.setattr(clip_trainer, "loss_of", loss_of)
    flags = ["--train_size", 16, "--batch_size", 8, "--max_steps", 9, "--vision_cfg", TOWER, "--output_dir", tmp_path]
    monkeypatch.setattr("sys.argv", ["train_clip.py", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        recipe.main()
    assert left.value.code == 128 + signal.SIGUSR1 and len(calls) == 2
    assert "stopped by SIGUSR1 after step 2 of 9." in caplog.text
    ClipScorer(str(tmp_path))


def test_a_tuned_openai_model_keeps_its_activation(tmp_path: Path, monkeypatch: Any) -> None:
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    small = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32", small)
    torch.save(open_clip.CLIP(**small).state_dict(), tmp_path / "openai.pt")
    tag = _PRETRAINED["ViT-B-32"]["openai"] | {"file": tmp_path / "openai.pt"}
    monkeypatch.setitem(_PRETRAINED["ViT-B-32"], "openai", tag)
    published_clip("ViT-B-32:openai").save(tmp_path / "tuned")
    tuned = ClipScorer(tmp_path / "tuned")
    assert "QuickGELU" in repr(tuned.model.transformer) and "QuickGELU" in repr(tuned.model.visual)
    picture = Image.linear_gradient("L").convert("RGB")
    assert torch.equal(tuned.transform(picture), ClipScorer("ViT-B-32:openai").transform(picture))


def test_too_few_images_for_a_batch_are_counted(tmp_path: Path) -> None:
    failed = train(tmp_path, "--train_size", 10, "--batch_size", 16, "--max_steps", 1, fails=True)
    assert "10 images do not fill a batch of 16" in failed.stderr


def test_a_published_model_is_tuned_at_a_lower_rate(recipe: ModuleType) -> None:
    assert [recipe.Settings(model=model, lr=lr).lr for model, lr in [(None, None), ("x", None), ("x", 3.0)]] == [
        2e-3, 1e-5, 3.0
    ]  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in Karpathy's form, as Flickr8k's archive has them: the JSON beside the folder of pictures."""
    folder = tmp_path_factory.mktemp("flickr8k")
    (folder / "Flicker8k_Dataset").mkdir()
    images = []
    for number, row in enumerate(emoji_scenes("train", 40, seed=0)):
        row["image"].resize((96, 64)).save(folder / "Flicker8k_Dataset" / f"{number}.jpg")
        split = "train" if number < 24 else "val" if number < 32 else "test"
        sentences = [{"raw": f"{caption} ."} for caption in row["captions"]]
        images.append({"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences})
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    return folder / "dataset_flickr8k.json"


def of_towers(towers: Path, photographs: Path) -> list[object]:
    return [
        "--dataset", photographs, "--image_tower", IMAGE_TOWER, "--image_weights", towers / "image.pth",
        "--text_tower", towers / "text", "--projection", "mlp", "--embed_dim", 16, "--image_frozen_steps", -1,
        "--text_frozen_steps", 2, "--cached_views", 2, "--mirror", "true", "--batch_size", 8, "--max_steps", 6,
        "--eval_steps", 2, "--keep_best", "true", "--bf16", "true",
    ]  # fmt: skip


def test_pretrained_towers_from_photographs_to_a_scorer(towers: Path, photographs: Path, tmp_path: Path) -> None:
    done = train(tmp_path, *of_towers(towers, photographs), "--hard_negatives", "true")
    assert "Features of 24 images, 2 views each of 256 numbers, take " in done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 6 and metrics["best_step"] in (2, 4, 6)
    for figures in (metrics, metrics["test"]):
        assert {"t2i_R@1", "i2t_R@1", "prefers_truth/noun", "prefers_truth/shuffle"} <= set(figures)
    scorer = ClipScorer(tmp_path)
    assert scorer.embed_dim == 16 and not list(tmp_path.glob("checkpoint-*"))
    trunk = torch.load(towers / "image.pth")["conv_stem.weight"].half().float()
    assert torch.equal(scorer.model.visual.trunk.conv_stem.weight, trunk)


def test_frozen_towers_are_read_once(towers: Path, photographs: Path, tmp_path: Path) -> None:
    flags = of_towers(towers, photographs)
    flags[flags.index("--text_frozen_steps") + 1] = -1
    done = train(tmp_path, *flags, "--cached_captions", "true", "--captions_per_image", 3)
    for count in (24, 8):  # training and validation
        assert re.search(rf"Features of {count} images, \d captions each of 16 numbers, take ", done.stderr)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["steps"] == 6 and len(list((tmp_path / "features").glob("*/features.npy"))) == 4


def test_captions_are_cached_only_for_a_frozen_tower(recipe: ModuleType) -> None:
    for given in ({"text_tower": "x"}, {"text_frozen_steps": -1}):
        with pytest.raises(ValueError, match="--cached_captions needs a frozen --text_tower"):
            recipe.Settings(dataset="captions.json", image_tower="x", cached_captions=True, **given)


def test_the_same_command_resumes_a_killed_run(
    recipe: ModuleType, towers: Path, photographs: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    flags = [*of_towers(towers, photographs), "--resume_from_checkpoint", "true"]
    train(tmp_path / "whole", *flags)
    monkeypatch.setattr("sys.argv", ["train_clip.py", *map(str, flags), "--output_dir", str(tmp_path / "cut")])
    plain = recipe.ClipTrainer.checkpoint

    def killed(self: Any) -> None:
        plain(self)
        if self.place.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(recipe.ClipTrainer, "checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.main()
    run_lock.release(tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint-4" / "complete.json").is_file()
    train(tmp_path / "cut", *flags)
    for name in ("metrics.json", "open_clip_model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_two_processes_train_one_model(towers: Path, photographs: Path, tmp_path: Path, run_processes: Any) -> None:
    flags = [*of_towers(towers, photographs), "--hard_negatives", "true", "--output_dir", tmp_path]
    script = str(Path(__file__).parents[1] / "distributed" / "recipe_in_two.py")
    run_processes(script, ["train_clip.py", *flags], ["train_clip.py", *flags])
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 6
    assert len(list((tmp_path / "features").glob("*/features.npy"))) == 2
    ClipScorer(tmp_path)


def test_weights_of_kinds_are_as_many_as_the_kinds_of_these_pictures(recipe: ModuleType) -> None:
    with pytest.raises(ValueError, match="must be 12 numbers.* noun, .* repeat"):
        recipe.Settings(dataset="captions.json", hard_negatives=True, kind_weights=[1.0] * 6)
