"""From a pretrained image model to a captioner that the stock pipeline loads."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import timm
import torch
from transformers import AutoModel

import hf_distinct
from hf_distinct.inference.pipelines import load_image_processor
from hf_distinct.runs.arguments import parse_settings

STUDENT = {
    "model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 1], "hidden_sizes": [8, 16],
    "patch_sizes": [7, 5], "strides": [4, 4], "num_attention_heads": [1, 1], "mlp_ratios": [2, 2], "hidden_size": 16,
    "reshape_last_stage": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["distill", "warm_up"])
def test_the_way_from_photographs_to_a_captioner_can_be_read(name: str) -> None:
    recipe = forked.module(name)
    file = {"distill": "encoder", "warm_up": "captioner"}[name]
    argv = [str(forked.RECIPES / "configs" / "flickr8k" / f"{file}.yaml"), "--dataset", "x.json", "--use_cpu", "true"]
    settings, training = parse_settings(recipe.Settings, recipe.Training, argv=argv)
    assert training.output_dir == f"outputs/flickr8k/{file}"
    assert training.load_best_model_at_end and training.metric_for_best_model == {"distill": "R2"}.get(name, "CIDEr-D")
    if name == "warm_up":
        assert settings.encoder == "outputs/flickr8k/encoder"
        assert training.max_steps == -1 and training.num_train_epochs > 3
    else:
        training.max_steps = 100
        assert recipe.number_of_epochs(training, 6400) == 0.5


def test_a_distilled_encoder_becomes_a_captioner(tmp_path: Path) -> None:
    pictures, weights = tmp_path / "pictures", tmp_path / "teacher.pth"
    forked.run("make_example.py", pictures, 40)
    torch.save(timm.create_model("test_efficientnet").state_dict(), weights)
    done = forked.run(
        "distill.py", "--dataset", pictures, "--teacher", "test_efficientnet", "--teacher_weights", weights,
        "--encoder_config", json.dumps(STUDENT), "--num_train_epochs", 2, "--whole_epochs", 1, "--crop_size", 64,
        "--per_device_train_batch_size", 8, "--validation_size", 3, "--output_dir", tmp_path / "encoder",
        "--use_cpu", "true",
    )  # fmt: skip
    metrics = json.loads((tmp_path / "encoder" / "metrics.json").read_text())
    assert set(metrics) == {"steps", "R2", "cosine"} and metrics["steps"] == 8
    assert f"R2 {metrics['R2']:.3f}" in done.stdout
    processor = load_image_processor(tmp_path / "encoder")
    data = timm.data.resolve_model_data_config(timm.create_model("test_efficientnet"))
    assert (3, processor.size["height"], processor.size["width"]) == data["input_size"]
    assert tuple(processor.image_mean) == data["mean"] and tuple(processor.image_std) == data["std"]

    forked.run(
        "warm_up.py", "--dataset", pictures, "--encoder", tmp_path / "encoder", "--decoder_width", 32,
        "--decoder_layers", 1, "--encoder_learning_rate", 1e-4, "--augment", "true", "--max_steps", 2,
        "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "captioner", "--use_cpu", "true",
    )  # fmt: skip
    captioner = hf_distinct.pipeline("image-to-text", str(tmp_path / "captioner"))
    assert isinstance(captioner.model.encoder, AutoModel.from_pretrained(tmp_path / "encoder").__class__)
    (said,) = captioner(str(next(pictures.rglob("*.png"))))
    assert isinstance(said["generated_text"], str)
