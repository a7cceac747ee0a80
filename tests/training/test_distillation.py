"""Distillation: what the student is compared with, on which views, and that it learns it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, Seq2SeqTrainingArguments, ViTImageProcessor

from hf_distinct.data.augmentation import Augmentation
from hf_distinct.training.distillation import (
    Distillation,
    Student,
    ViewCollator,
    build_student,
    imitation_loss,
    teacher_maps,
)

SEGFORMER = {
    "model_type": "segformer", "num_encoder_blocks": 3, "depths": [1, 1, 1], "sr_ratios": [4, 2, 1],
    "hidden_sizes": [8, 16, 32], "patch_sizes": [3, 3, 1], "strides": [4, 2, 1], "num_attention_heads": [1, 1, 2],
    "mlp_ratios": [2, 2, 2], "hidden_size": 32, "reshape_last_stage": False, "drop_path_rate": 0.0,
}  # fmt: skip
CONVNEXT = {"model_type": "dinov3_convnext", "hidden_sizes": [8, 16], "depths": [1, 1]}
VIT = {
    "model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
PROCESSOR = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
PIXELS = torch.zeros(1, 3, 32, 32)


class Teacher(nn.Module):
    """Two maps as timm's models give them, of 8 x 8 and 4 x 4 positions; the second stage has a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.first, self.second = nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, 10, 2, stride=2)
        self.norm = nn.BatchNorm2d(10)

    def forward_intermediates(self, pixels: torch.Tensor, intermediates_only: bool) -> list[torch.Tensor]:
        first = self.first(pixels)
        return [first, self.norm(self.second(first.relu()))]


def build(config: dict[str, Any], hints: bool = True, sides: tuple[int, ...] = (32,)) -> Student:
    torch.manual_seed(0)
    own = dict(config)
    encoder = AutoModel.from_config(AutoConfig.for_model(own.pop("model_type"), **own))
    return build_student(encoder, Teacher().eval(), sides, hints)


def make(output: Path, size: int = 12, hint_weight: float = 0.5, **settings: Any) -> Distillation:
    defaults: dict[str, Any] = {
        "output_dir": str(output), "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 3e-3,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "report_to": [], "remove_unused_columns": False, "seed": 3,
    }  # fmt: skip
    views = Augmentation((0.5, 1.0), 16), Augmentation((0.5, 1.0), 32)
    return Distillation(
        build(SEGFORMER), Teacher(), Seq2SeqTrainingArguments(**{**defaults, **settings}),
        train_dataset=tiny.scenes(size), eval_dataset=tiny.scenes(8), collator=ViewCollator(PROCESSOR, *views, 1),
        hint_weight=hint_weight,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- what is compared


@pytest.mark.both_ends
@pytest.mark.parametrize(("config", "places"), [(SEGFORMER, [0, 1, 1]), (VIT, [1])])
def test_maps_are_paired_by_height_and_the_output_with_the_last(config, places):
    found = build(config)(torch.randn(2, 3, 32, 32))
    assert [place for _, place in found] == places
    assert [each.shape for each, _ in found] == [((2, 8, 8, 6), (2, 4, 4, 10))[place] for place in places]
    assert [place for _, place in build(config, hints=False)(PIXELS)] == [1]


def test_a_class_token_is_not_compared():
    student = build(VIT)
    tokens = student.encoder(PIXELS).last_hidden_state
    (found, _), (head,) = student(PIXELS)[-1], student.heads
    torch.testing.assert_close(found.flatten(1, 2), head(tokens[:, 1:]))


@pytest.mark.parametrize(
    ("config", "sides", "message"),
    [
        (VIT, (32, 16), "A ViTModel .* views of 32 and 16 pixels: .*doesn't match model"),
        (CONVNEXT, (32,), "A DINOv3ConvNextModel cannot learn .*'output_attentions'"),
        ({"model_type": "resnet"}, (32,), r"A ResNetModel cannot learn .*"),
    ],
)
def test_an_encoder_that_cannot_learn_or_caption_is_refused_at_once(config, sides, message):
    with pytest.raises(ValueError, match=message):
        build(config, sides=sides)


def test_the_loss_is_that_of_the_last_map_and_a_share_of_the_mean_of_the_others():
    wanted = [torch.ones(1, 2, 2, 3), torch.zeros(1, 1, 1, 3)]
    found = [(torch.zeros(1, 2, 2, 3), 0), (torch.full((1, 1, 1, 3), 3.0), 1), (torch.full((1, 1, 1, 3), 2.0), 1)]
    assert imitation_loss(found, wanted, 0.5).item() == 4 + 0.5 * (1 + 9) / 2
    assert imitation_loss(found[-1:], wanted, 0.5).item() == 4
    larger = [(torch.zeros(1, 2, 2, 3), 1)]  # the teacher's map takes the size of the student's
    assert imitation_loss(larger, [*wanted[:1], torch.full((1, 1, 1, 3), 2.0)], 0.5).item() == 4


def test_what_the_teacher_sees_has_no_scale_of_its_own():
    for maps in teacher_maps(Teacher().eval(), torch.randn(2, 3, 32, 32)):
        torch.testing.assert_close(maps.mean(dim=-1), torch.zeros(maps.shape[:-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(maps.var(dim=-1, correction=0), torch.ones(maps.shape[:-1]), atol=1e-2, rtol=0)


# ------------------------------------------------------------------------------------------------------------- views


def test_crops_come_first_and_whole_views_last():
    collator = ViewCollator(PROCESSOR, Augmentation((0.2, 0.5), 16), Augmentation((0.5, 1.0), 32), whole_from=2)
    rows = list(tiny.scenes(3))
    batches = []
    for epoch in (0, 1, 2):
        collator.epoch = epoch
        batches.append(collator(rows)["pixel_values"])
        assert torch.equal(batches[-1], collator(rows)["pixel_values"])
    assert [tuple(each.shape) for each in batches] == [(3, 3, 16, 16), (3, 3, 16, 16), (3, 3, 32, 32)]
    assert not torch.equal(batches[0], batches[1])


def test_a_picture_that_has_gone_bad_is_left_out_and_named(caplog):
    collator = ViewCollator(PROCESSOR, Augmentation((0.2, 0.5), 16), Augmentation((0.5, 1.0), 32), whole_from=2)
    rows = [*tiny.scenes(2), {"image": {"bytes": b"no picture", "path": None}, "image_id": "bad"}]
    assert len(collator(rows)["pixel_values"]) == 2
    assert "Image 'bad': " in caplog.text
    with pytest.raises(ValueError, match="No image of a batch of 1 can be decoded. Image 'bad'"):
        collator(rows[-1:])


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.both_ends
def test_the_student_learns_and_the_teacher_stays(tmp_path):
    trainer = make(tmp_path, max_steps=40)
    before, first = tiny.weights(trainer.teacher), trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    assert first["eval_R2"] < 0 < 0.2 < last["eval_R2"] < 1
    assert last["eval_cosine"] > first["eval_cosine"]
    assert not tiny.moved(before, trainer.teacher)  # the statistics of its BatchNorm included

    trainer.save_model()
    encoder, processor = AutoModel.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)
    assert not tiny.moved(tiny.weights(trainer.student.encoder), encoder)
    assert processor.size == PROCESSOR.size and processor.image_std == PROCESSOR.image_std


@pytest.mark.both_ends
def test_a_resumed_training_is_the_same_training_and_the_best_is_kept(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "R2", "eval_strategy": "steps", "eval_steps": 2}
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **best}
    whole = make(tmp_path, **settings)
    whole.train()
    assert whole.data_collator.epoch == 1  # crops, then whole views
    found = tiny.weights(whole.model)
    (tmp_path / "checkpoint-6" / "model.safetensors").unlink()
    resumed = make(tmp_path, **settings)
    resumed.train("true")  # from step 4
    assert not tiny.moved(found, resumed.model)
    values = {line["step"]: line["eval_R2"] for line in whole.state.log_history if "eval_R2" in line}
    assert whole.state.best_global_step == max(values, key=lambda step: values[step])


def test_what_is_not_finite_ends_the_training_and_is_not_saved(tmp_path):
    trainer = make(tmp_path, learning_rate=1e30)
    with pytest.raises(ValueError, match="this encoder is not saved"):
        trainer.train()
    next(trainer.student.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="is not saved"):
        trainer.save_model()
    assert not list(tmp_path.glob("*.safetensors"))


def test_bf16_reaches_student_and_teacher(tmp_path):
    trainer, seen = make(tmp_path, bf16=True, max_steps=1), []
    for layer in (trainer.teacher.first, trainer.student.encoder.encoder.patch_embeddings[0].proj):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer.train()
    assert seen == [torch.bfloat16] * 2
