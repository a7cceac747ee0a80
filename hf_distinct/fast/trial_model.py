"""A tiny captioner on which accelerations are tried."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

IMAGES, PER_IMAGE, WORDS, WIDTH = 2, 3, 11, 8
START, END = 1, 2


@lru_cache(maxsize=1)
def trial_captioner() -> VisionEncoderDecoderModel:
    """Return an untrained captioner in double precision and eval mode, with weights large enough to prefer words."""
    torch.manual_seed(0)
    encoder = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=1, intermediate_size=WIDTH, image_size=4,
        patch_size=4,
    )  # fmt: skip
    decoder = GPT2Config(
        n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=WORDS, n_positions=16, add_cross_attention=True,
        initializer_range=0.5, bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    model = VisionEncoderDecoderModel(encoder=ViTModel(encoder), decoder=GPT2LMHeadModel(decoder))
    config: Any
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, 0
    return model.double().eval()


def trial_states() -> Tensor:
    """Return encoded images ``(B, S, H)``."""
    return torch.randn(IMAGES, 3, WIDTH, dtype=torch.float64)


def trial_states_of_all_kinds() -> Tensor:
    """Return more images, whose captions have different lengths."""
    return torch.cat([trial_states() * scale for scale in (0.2, 1, 2, 4, 8)])


def trial_tokens() -> Tensor:
    """Return captions ``(B * K, L)``; captions of an image are adjacent."""
    return torch.randint(3, WORDS, (IMAGES * PER_IMAGE, 6))


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether two double-precision tensors are equal up to rounding."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=1e-9)
