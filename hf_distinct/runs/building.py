"""Build a captioner from `CaptionerSettings`, or load one: the model, its tokenizer and its image processor."""

from __future__ import annotations

import json
from typing import Any

from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedModel,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from hf_distinct.data.images import to_pixel_values
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.families import FlattenMaps, accept_maps, family_of
from hf_distinct.files.safe_loading import refuse_code
from hf_distinct.generation.special_tokens import complete_special_tokens, set_special_tokens
from hf_distinct.inference.captioner_fit import decoder_positions
from hf_distinct.inference.pipelines import load_captioner, load_image_processor
from hf_distinct.runs.captioner_settings import DEFAULT_LENGTH, HEAD_WIDTH, OF_PARTS, CaptionerSettings

POSITIONS = 32  # of a new decoder, which has more where captions are longer
IMAGE_SIZE = 64
# Overlapping patches of three strided convolutions see small things sooner than square patches do; 64 tokens come out.
SMALL_ENCODER: dict[str, Any] = {
    "model_type": "segformer",
    "num_encoder_blocks": 3,
    "depths": [1, 1, 2],
    "sr_ratios": [8, 4, 1],
    "hidden_sizes": [24, 64, 128],
    "patch_sizes": [5, 3, 3],
    "strides": [2, 2, 2],
    "num_attention_heads": [1, 2, 4],
    "mlp_ratios": [1, 2, 2],
    "drop_path_rate": 0.0,
    "hidden_size": 128,
    "reshape_last_stage": False,
}
SMALL_VIT: dict[str, Any] = {
    "image_size": IMAGE_SIZE, "patch_size": 8, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 256, "initializer_range": 0.02,
}  # fmt: skip


def build_captioner(settings: CaptionerSettings, captions: list[str]) -> tuple[PreTrainedModel, Any, Any]:
    """Build or load captioner, tokenizer and image processor; a new decoder gets its vocabulary from the captions.

    Raises:
        OSError, ValueError: a part cannot be loaded, or the two do not fit together.
    """
    model: Any
    if settings.model_name_or_path is not None:
        tokenizer: Any
        model, tokenizer, image_processor = load_captioner(settings.model_name_or_path)
    else:
        if settings.model_type == OF_PARTS:
            encoder, image_processor = build_encoder(settings)
            decoder, tokenizer = build_decoder(settings, captions)
            model = VisionEncoderDecoderModel.from_encoder_decoder_pretrained(
                encoder_model=encoder, decoder_model=decoder
            )
            accept_maps(model)
        else:
            model, tokenizer, image_processor = build_whole(settings, captions)
        set_special_tokens(model, tokenizer)
        if settings.min_word_count > 1:  # reference captions then have unknown words, which none may write
            model.generation_config.suppress_tokens = [tokenizer.unk_token_id]
    if settings.model_name_or_path is None or settings.max_caption_length is not None:
        by_default = min(DEFAULT_LENGTH, decoder_positions(model))
        length = (settings.max_caption_length or by_default) + 1  # the start token counts
        # transformers takes 20 for "nobody said anything", and would let captions grow to 256 tokens.
        model.generation_config.max_length = 21 if length == 20 else length
        model.generation_config.max_new_tokens = None
    if settings.freeze_encoder:
        family_of(model).encoder.requires_grad_(False)
    return model, tokenizer, image_processor


def build_encoder(settings: CaptionerSettings) -> tuple[Any, Any]:
    """Build or load the image encoder and its image processor."""
    if settings.encoder is not None:
        refuse_code(settings.encoder)
        encoder = AutoModel.from_pretrained(settings.encoder, trust_remote_code=False)
        processor: Any = load_image_processor(settings.encoder)
    else:
        config = dict(SMALL_ENCODER) if settings.encoder_config is None else json.loads(settings.encoder_config)
        processor = build_image_processor(config.get("image_size", IMAGE_SIZE))
        encoder = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    if not hasattr(encoder.config, "hidden_size"):  # convolutional encoders and timm's lack it; a captioner needs it
        pixels = to_pixel_values([Image.new("RGB", (64, 48))], processor)
        outputs = FlattenMaps()(encoder, None, encoder.eval()(pixels))
        encoder.config.hidden_size = outputs.last_hidden_state.shape[-1]
    return encoder, processor


def build_image_processor(size: int | list[int]) -> ViTImageProcessor:
    """Build the image processor of a new encoder for images of this size, or of this height and width."""
    height, width = size if isinstance(size, list) else (size, size)
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


def build_whole(settings: CaptionerSettings, captions: list[str]) -> tuple[PreTrainedModel, Any, Any]:
    """Build a new BLIP or GIT with its tokenizer and image processor."""
    length = settings.max_caption_length or DEFAULT_LENGTH
    tokenizer = build_tokenizer(settings, captions, length)
    vision = SMALL_VIT if settings.encoder_config is None else json.loads(settings.encoder_config)
    # BLIP's default is 1e-10, from which a vision transformer does not learn.
    vision = {"initializer_range": SMALL_VIT["initializer_range"], **vision}
    text = text_settings(settings, len(tokenizer), length)
    model: Any
    if settings.model_type == "blip":
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    else:
        model = GitForCausalLM(GitConfig(**text, vision_config=vision))
    return model, tokenizer, build_image_processor(model.config.vision_config.image_size)


def text_settings(settings: CaptionerSettings, words: int, length: int) -> dict[str, Any]:
    """Return the settings of a new decoder of BERT's kind, for so many words and captions of this length."""
    return {
        "vocab_size": words, "hidden_size": settings.decoder_width, "num_hidden_layers": settings.decoder_layers,
        "num_attention_heads": settings.decoder_width // HEAD_WIDTH, "intermediate_size": 4 * settings.decoder_width,
        "max_position_embeddings": max(POSITIONS, length), "hidden_dropout_prob": settings.decoder_dropout,
        "attention_probs_dropout_prob": settings.decoder_dropout,
    }  # fmt: skip


def build_decoder(settings: CaptionerSettings, captions: list[str]) -> tuple[Any, Any]:
    """Build or load the language model with cross-attention, and its tokenizer."""
    length = settings.max_caption_length or DEFAULT_LENGTH
    if settings.decoder is not None:
        refuse_code(settings.decoder)
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.decoder, trust_remote_code=False)
        complete_special_tokens(tokenizer)
        return load_decoder(settings.decoder), tokenizer
    tokenizer = build_tokenizer(settings, captions, length)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), settings.decoder_dropout)
    config = GPT2Config(
        **dropout, n_embd=settings.decoder_width, n_head=settings.decoder_width // HEAD_WIDTH,
        vocab_size=len(tokenizer), n_positions=max(POSITIONS, length), n_layer=settings.decoder_layers,
        is_decoder=True, add_cross_attention=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config), tokenizer


def build_tokenizer(settings: CaptionerSettings, captions: list[str], length: int) -> Any:
    """Build or load the tokenizer of a new decoder."""
    if settings.tokenizer is None:
        return build_word_tokenizer(captions, settings.min_word_count, max_length=length)
    refuse_code(settings.tokenizer)
    tokenizer: Any = AutoTokenizer.from_pretrained(settings.tokenizer, trust_remote_code=False)
    complete_special_tokens(tokenizer)
    return tokenizer


def load_decoder(source: str) -> Any:
    """Load a pretrained language model, and add new cross-attention.

    Raises:
        ValueError: transformers has no such model with cross-attention.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    config.is_decoder = config.add_cross_attention = True
    try:
        return AutoModelForCausalLM.from_pretrained(source, config=config, trust_remote_code=False)
    except ValueError as error:
        reason = str(error).split("\n")[0].split(". ")[0][:200]
        raise ValueError(
            f"--decoder {source} cannot be loaded as a causal language model (its type is {config.model_type!r}): "
            f"{reason}. Choose a GPT-2, BERT, RoBERTa or BART."
        ) from error


