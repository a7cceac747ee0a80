"""What the tests of the data package share: real pictures on disk and a tiny real CLIP model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from hf_distinct.scorer import ClipScorer, save_open_clip

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "size": [32, 32],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@pytest.fixture(scope="session")
def scorer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model of one layer a tower with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny_data_clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny_data_clip.json")
    torch.manual_seed(0)
    save_open_clip(open_clip.create_model("tiny_data_clip"), folder / "model", TINY_CLIP, PREPROCESS)
    return folder / "model"


@pytest.fixture(scope="session")
def scorer(scorer_folder: Path) -> ClipScorer:
    return ClipScorer(f"local-dir:{scorer_folder}")


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a picture of noise, another for another seed, and returns its path."""

    def write(name: str, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[Any], Path]:
    def write(document: Any) -> Path:
        path = tmp_path / "captions.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture
def rows_to_dataset() -> Callable[[list[tuple[Any, list[str], str]]], Dataset]:
    """Makes a data set of (image file, captions, image id)."""

    def make(rows: list[tuple[Any, list[str], str]]) -> Dataset:
        features = Features({"image": Image(), "captions": [Value("string")], "image_id": Value("string")})
        images = [str(image) for image, _, _ in rows]
        columns = {"image": images, "captions": [row[1] for row in rows], "image_id": [row[2] for row in rows]}
        return Dataset.from_dict(columns, features=features)

    return make
