"""A CLIP of tiny pretrained towers, for the tests that train one."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoModel, BertConfig

from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.training.clip_building import TrainedClip, clip_of_towers

IMAGE_TOWER = "test_efficientnet"
CAPTIONS = ["a black dog runs on the grass", "two cats"]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an image tower, and the folder of a text tower."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    torch.save(timm.create_model(IMAGE_TOWER).state_dict(), folder / "image.pth")
    tokenizer = build_word_tokenizer(CAPTIONS, max_length=30)
    tokenizer.save_pretrained(folder / "text")
    how = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 30}
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, pad_token_id=tokenizer.pad_token_id, **how)
    AutoModel.from_config(config).save_pretrained(folder / "text")
    return folder


def build(towers: Path, text: str | None = "text", projection: str = "mlp") -> TrainedClip:
    name = None if text is None else str(towers / text)
    return clip_of_towers(IMAGE_TOWER, str(towers / "image.pth"), name, 24, projection, 0.1, CAPTIONS)
