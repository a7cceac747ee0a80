"""Teacher forcing from nothing, and on from there with one's own pictures."""

import json
from pathlib import Path

import forked
from transformers import AutoTokenizer, VisionEncoderDecoderModel

from hf_distinct.data import load_captions
from hf_distinct.pipelines import load_image_processor
from hf_distinct.rollout import write_captions


def warm_up(folder: Path, *arguments: str) -> None:
    small = ["--max_steps", 2, "--per_device_train_batch_size", 8, "--captions_per_image", 2]
    forked.run("warm_up.py", "--output_dir", folder, *small, *arguments)


def test_from_nothing_then_on_ones_own_pictures(tmp_path: Path) -> None:
    warm_up(tmp_path / "new", "--train_size", "32")
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert {"CIDEr-D", "well_formed", "true", "details"} <= set(metrics)

    pictures = tmp_path / "pictures"
    forked.run("make_example.py", pictures, 40)
    on = ["--dataset", str(pictures), "--model_name_or_path", str(tmp_path / "new")]
    warm_up(tmp_path / "on", *on, "--drop_images", "0.5")
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path / "on").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "on")
    processor = load_image_processor(tmp_path / "on")
    dataset = load_captions(str(pictures))["train"].select(range(5))
    assert len(write_captions(model, tokenizer, processor, dataset, batch_size=2)) == 5
