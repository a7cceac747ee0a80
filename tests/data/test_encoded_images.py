"""Outputs of a frozen encoder: what the encoder would give, found again, and trained with as with pictures."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments

from hf_distinct.data import encoded_images
from hf_distinct.data.augmentation import Augmentation
from hf_distinct.data.encoded_images import encode_images
from hf_distinct.data.images import ImageError, decode_pixels
from hf_distinct.gallery import Gallery
from hf_distinct.training.teacher_forcing import TeacherForcing


@pytest.fixture
def parts(tiny_models) -> tuple[Any, Any]:
    model, _, image_processor = tiny.load_captioner(tiny_models)
    return model.encoder.requires_grad_(False), image_processor


@pytest.fixture
def passes(parts) -> list[int]:
    """How many images were in each pass of the encoder."""
    seen: list[int] = []
    parts[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def files(folder: Path, count: int = 5) -> Dataset:
    """Pictures in files, the third of which is none."""
    for number, image in enumerate(tiny.scenes(count)["image"]):
        image.save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"no picture")
    rows = [{"bytes": None, "path": str(folder / f"{number}.png")} for number in range(count)]
    return Dataset.from_dict({"image": rows, "image_id": [str(number) for number in range(count)]}).cast_column(
        "image", encoded_images.Image(decode=False)
    )


def test_they_are_what_the_encoder_gives_and_are_found_again(parts, passes, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(encoded_images, "PART_ROWS", 2)
    caplog.set_level(logging.INFO, "hf_distinct")
    (tmp_path / "pictures").mkdir()
    dataset, (encoder, processor) = files(tmp_path / "pictures"), parts
    encoded = encode_images(dataset, encoder, processor, tmp_path / "cache", batch_size=2)
    assert sum(passes) == 4
    assert f"outputs for 5 images take 0 MiB in {tmp_path / 'cache'}" in caplog.text
    pixels = decode_pixels(dataset["image"], processor).images
    for name, each in zip("0134", pixels, strict=True):
        hidden = encoder(each[None]).last_hidden_state[0]
        torch.testing.assert_close(encoded(name), hidden, atol=2e-3, rtol=2e-3)
    with pytest.raises(ImageError, match="2.png.* cannot be decoded"):
        encoded("2")
    with pytest.raises(ValueError, match="Image 'other' is not among the encoded images"):
        encoded("other")
    assert torch.equal(pickle.loads(pickle.dumps(encoded))("3"), encoded("3"))  # into a worker

    passes.clear()
    lost = sorted((tmp_path / "cache").rglob("*.safetensors"))[1]  # of a run that was killed
    lost.unlink()
    again = encode_images(dataset, encoder, processor, tmp_path / "cache", batch_size=2)
    assert sum(passes) == 1 and torch.equal(again("3"), encoded("3"))


@pytest.mark.parametrize("changed", ["weights", "picture", "processor"])
def test_what_has_changed_is_encoded_anew(parts, passes, tmp_path, changed):
    dataset, (encoder, processor) = files(tmp_path), parts
    encode_images(dataset, encoder, processor, tmp_path / "cache")
    passes.clear()
    encode_images(dataset, encoder, processor, tmp_path / "cache")
    assert passes == []
    if changed == "weights":
        next(encoder.parameters()).data += 1
    elif changed == "picture":
        os.utime(tmp_path / "0.png", (1, 1))
    else:
        processor.image_std = [0.5] * 3
    encode_images(dataset, encoder, processor, tmp_path / "cache")
    assert sum(passes) == 4


def test_no_room_for_them_is_said_before_they_are_written(parts, tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("", (), {"free": 10})())
    with pytest.raises(OSError, match="The encoder's outputs will need about .* but the disk has"):
        encode_images(files(tmp_path / "pictures"), *parts, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def teacher_forcing(models: Path, output: Path, frozen: bool = True, **own: Any) -> TeacherForcing:
    model, tokenizer, image_processor = tiny.load_captioner(models)
    model.encoder.requires_grad_(not frozen)
    args = Seq2SeqTrainingArguments(
        output_dir=str(output), per_device_train_batch_size=4, max_steps=3, learning_rate=0.1, optim="sgd",
        save_strategy="no", use_cpu=True, report_to=[], remove_unused_columns=False, disable_tqdm=True, seed=3,
    )  # fmt: skip
    return TeacherForcing(
        model, args, train_dataset=tiny.scenes(), gallery=Gallery(tiny.scenes(8), {}), processing_class=tokenizer,
        image_processor=image_processor, max_length=tiny.MAX_LENGTH, **own,
    )  # fmt: skip


def test_teacher_forcing_trains_the_same_captioner_from_encoded_images(tiny_models, tmp_path):
    torch.manual_seed(0)
    plain = teacher_forcing(tiny_models, tmp_path)
    plain.train()
    cached = teacher_forcing(tiny_models, tmp_path, encoder_cache=str(tmp_path / "cache"))
    cached.model.encoder.register_forward_hook(lambda *_: pytest.fail("the encoder is called"))
    cached.train()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(cached.model.state_dict()[name], value, atol=2e-3, rtol=0)
    assert tiny.moved(tiny.weights(tiny.load_captioner(tiny_models)[0]), cached.model)


def test_an_encoder_that_learns_and_views_that_change_have_no_cache(tiny_models, tmp_path):
    for settings in ({"frozen": False}, {"augmentation": Augmentation((0.5, 1.0))}):
        with pytest.raises(ValueError, match="encoder_cache needs a frozen encoder, and .* augmentation"):
            teacher_forcing(tiny_models, tmp_path, encoder_cache=str(tmp_path), **settings)
    with pytest.raises(ValueError, match="encoder_cache stores .* set freeze_encoder"):
        tiny.make_trainer(tiny_models, tmp_path, encoder_cache=str(tmp_path))


def test_rewards_train_the_same_captioner_from_encoded_images(tiny_models, tmp_path):
    settings = {"freeze_encoder": True, "max_steps": 2, "kl_weight": 0.1, "discriminator_pretrain_steps": 1}
    plain = tiny.make_trainer(tiny_models, tmp_path, **settings)
    plain.train()
    cached = tiny.make_trainer(tiny_models, tmp_path, encoder_cache=str(tmp_path / "cache"), **settings)
    for model in (cached.model, cached.reference_model):
        model.encoder.register_forward_hook(lambda *_: pytest.fail("an encoder is called"))
    cached.train()
    assert cached.step_losses == pytest.approx(plain.step_losses, abs=5e-3)
