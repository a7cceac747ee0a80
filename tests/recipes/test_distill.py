"""From a pretrained image model to a captioner that the stock pipeline loads."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import timm
import torch
from transformers import AutoModel

import hf_distinct
from hf_distinct.pipelines import load_image_processor

STUDENT = {
    "model_type": "segformer", "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 1], "hidden_sizes": [8, 16],
    "patch_sizes": [7, 5], "strides": [4, 4], "num_attention_heads": [1, 1], "mlp_ratios": [2, 2], "hidden_size": 16,
    "reshape_last_stage": False,
}  # fmt: skip


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
