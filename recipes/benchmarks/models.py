"""What the benchmarks of a step measure: the shipped models, and untrained ones of base size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
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
    decoder = GPT2Config(is_decoder=True, add_cross_attention=True)
    tokenizer = _tokenizer(decoder.vocab_size)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), decoder)
    captioner: Any = VisionEncoderDecoderModel(config)
    for part in (captioner.config, captioner.generation_config):
        part.decoder_start_token_id = part.bos_token_id = tokenizer.bos_token_id
        part.eos_token_id, part.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    captioner.generation_config.max_length = 21  # twenty tokens, and the one to start with
    return captioner, tokenizer, ViTImageProcessor(), _clip(folder)


def blip_models(folder: Path) -> tuple[Any, ...]:
    """BLIP of the published base size, at 384 px, and the same CLIP, all with random weights."""
    config = BlipConfig()
    config.vision_config.initializer_range = 0.02  # its own is 1e-10
    text: Any = config.text_config
    tokenizer = _tokenizer(text.vocab_size)
    text.bos_token_id, text.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    text.sep_token_id = text.eos_token_id = tokenizer.eos_token_id
    captioner: Any = BlipForConditionalGeneration(config)
    captioner.generation_config.max_length = 21
    return captioner, tokenizer, BlipImageProcessor(), _clip(folder)


def _tokenizer(size: int) -> Any:
    """Return a tokenizer of so many words, which CLIP knows."""
    tokens = open_clip.get_tokenizer("ViT-B-32").decoder.values()
    words = sorted({token[:-4] for token in tokens if token.endswith("</w>") and token[:-4].isalpha()})
    vocabulary = words + [first + second for first, second in zip(words, reversed(words), strict=True)]
    return build_word_tokenizer(vocabulary[: size - 4])


def _clip(folder: Path) -> ClipScorer:
    """Return a CLIP of ViT-B/32 size."""
    weights = folder / "clip.pt"
    torch.save(open_clip.create_model("ViT-B-32").state_dict(), weights)
    return ClipScorer("ViT-B-32", pretrained=str(weights))
