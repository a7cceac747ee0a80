"""What the benchmarks of a step measure: the shipped models, and untrained ones of base size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from transformers import (
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from hf_distinct import ClipScorer
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.inference.pipelines import load_captioner


def small_models(folder: Path) -> tuple[Any, ...]:
    """Captioner, tokenizer, image processor and scorer: the shipped ones."""
    return *load_captioner("captioner"), ClipScorer("scorer")


def base_models(folder: Path) -> tuple[Any, ...]:
    """ViT-B/16 + GPT-2 and a CLIP of ViT-B/32 size with random weights; a token of one is one or two of the other."""
    tokens = open_clip.get_tokenizer("ViT-B-32").decoder.values()
    words = sorted({token[:-4] for token in tokens if token.endswith("</w>") and token[:-4].isalpha()})
    decoder = GPT2Config(is_decoder=True, add_cross_attention=True)
    vocabulary = words + [first + second for first, second in zip(words, reversed(words), strict=True)]
    tokenizer = build_word_tokenizer(vocabulary[: decoder.vocab_size - 4])
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), decoder)
    captioner: Any = VisionEncoderDecoderModel(config)
    for part in (captioner.config, captioner.generation_config):
        part.decoder_start_token_id = part.bos_token_id = tokenizer.bos_token_id
        part.eos_token_id, part.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    captioner.generation_config.max_length = 21  # twenty tokens, and the one to start with
    weights = folder / "clip.pt"
    torch.save(open_clip.create_model("ViT-B-32").state_dict(), weights)
    return captioner, tokenizer, ViTImageProcessor(), ClipScorer("ViT-B-32", pretrained=str(weights))
