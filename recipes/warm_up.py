"""Teach a captioner by teacher forcing: the model that reinforcement learning starts from.

    python recipes/warm_up.py                                            # the small shipped one, on emoji scenes
    python recipes/warm_up.py --dataset captions.json --image_root images \
        --encoder google/vit-base-patch16-224-in21k --decoder gpt2       # published towers, your own pictures

The result is a VisionEncoderDecoderModel of stock transformers classes with its tokenizer and image processor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2Config,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
    set_seed,
)

from hf_distinct.arguments import clear_errors, parse_settings
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.emoji_scenes import CAPTION_STYLES, emoji_scenes
from hf_distinct.data.settings import DatasetSettings
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.fit import check_fit
from hf_distinct.gallery import Gallery
from hf_distinct.guidance import drop_images
from hf_distinct.pipelines import load_image_processor, save_tokenizer
from hf_distinct.rollout import caption_logits, encode, write_captions

# Overlapping patches of three strided convolutions see small things sooner than square patches do; 64 tokens come out.
SMALL_ENCODER = {
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


@dataclass
class Settings(DatasetSettings):
    """Which model, on what."""

    encoder: str | None = field(default=None, metadata={"help": "Published image encoder; none: a small new one."})
    decoder: str | None = field(default=None, metadata={"help": "Published language model; none: a small new one."})
    encoder_config: str = field(
        default=json.dumps(SMALL_ENCODER), metadata={"help": "A new encoder, as JSON of its transformers config."}
    )
    decoder_layers: int = field(default=2, metadata={"help": "Layers of a new GPT-2 decoder, 128 wide."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Go on from this captioner."})
    train_size: int = field(default=40000, metadata={"help": "Scenes of the emoji world."})
    caption_style: str = field(
        default="people",
        metadata={
            "help": "Captions of emoji scenes: as people write, more detailed, or with all six facts.",
            "choices": list(CAPTION_STYLES),
        },
    )
    captions_per_image: int = field(default=5, metadata={"help": "Captions of each image in a step."})
    drop_images: float = field(
        default=0.0,
        metadata={"help": "Share of captions that learn to be written without their picture, as guidance needs; 0.5."},
    )
    max_caption_length: int = field(default=24, metadata={"help": "Tokens, end token included."})


@dataclass
class Training(Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with defaults that suit the small captioner."""

    output_dir: str = field(default="outputs/captioner", metadata={"help": "Where the captioner goes."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Images a step and process."})
    learning_rate: float = field(default=1.5e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule."})
    warmup_steps: int = field(default=100, metadata={"help": "Linear warm-up."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    max_steps: int = field(default=2500, metadata={"help": "Optimiser steps."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between log lines."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints on the way."})
    report_to: list[str] = field(default_factory=list, metadata={"help": "Experiment trackers."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator reads every column."})


class TeacherForcing(Seq2SeqTrainer):
    """Cross-entropy on several captions an image, the image encoded once, and dropped for a share of them."""

    drop_images = 0.0

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean negative log-likelihood of the captions' tokens."""
        labels = inputs["labels"]
        hidden = encode(self.accelerator.unwrap_model(model).encoder, inputs["pixel_values"], self.accelerator)
        if self.drop_images:
            hidden = drop_images(hidden.repeat_interleave(labels.shape[1], dim=0), self.drop_images)
        # Not the model's own loss: from transformers 4.50 to 4.57 it shifts the labels a second time, and the
        # captioner would learn to leave out every other word (huggingface/transformers#40111).
        logits = caption_logits(model, hidden, labels.flatten(0, 1))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return (loss, {"logits": logits}) if return_outputs else loss


def build_captioner(settings: Settings, captions: list[str]) -> tuple[VisionEncoderDecoderModel, Any, Any]:
    """Captioner, tokenizer, image processor."""
    model: Any
    if settings.model_name_or_path is not None:
        source = settings.model_name_or_path
        model = VisionEncoderDecoderModel.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        return model, tokenizer, load_image_processor(source)
    if settings.decoder is not None:
        tokenizer = AutoTokenizer.from_pretrained(settings.decoder, trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer = build_word_tokenizer(captions, max_length=settings.max_caption_length)
    if settings.encoder is not None and settings.decoder is not None:
        model = VisionEncoderDecoderModel.from_encoder_decoder_pretrained(settings.encoder, settings.decoder)
        image_processor = load_image_processor(settings.encoder)
    else:
        encoder = json.loads(settings.encoder_config)
        decoder = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=32,
            n_embd=128,
            n_layer=settings.decoder_layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            add_cross_attention=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
            AutoConfig.for_model(encoder.pop("model_type"), **encoder), decoder
        )
        model = VisionEncoderDecoderModel(config)
        image_processor = ViTImageProcessor(
            size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.25] * 3
        )
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    for part in (model.config, model.generation_config):
        part.decoder_start_token_id, part.bos_token_id = start, start
        part.eos_token_id, part.pad_token_id = end, tokenizer.pad_token_id
    model.generation_config.max_length = settings.max_caption_length + 1  # the start token counts
    return model, tokenizer, image_processor


def main() -> None:
    """Train and save."""
    settings, training = parse_settings(Settings, Training, description=__doc__)
    if not 0 <= settings.drop_images < 1:
        raise ValueError(f"drop_images={settings.drop_images} must be a share, 0 or more and less than 1")
    set_seed(training.seed)
    if settings.drawn:
        shares = CAPTION_STYLES[settings.caption_style]
        train = emoji_scenes("train", settings.train_size, 50 + training.seed, shares=shares)
        validation = emoji_scenes("validation", 1000, 50 + training.seed)
    else:
        splits = settings.load()
        train, validation = splits["train"], splits["validation"].select(range(min(1000, len(splits["validation"]))))
    captions = [caption for row in train["captions"] for caption in row]
    model, tokenizer, image_processor = build_captioner(settings, captions)
    check_fit(model, tokenizer, image_processor, training)
    collator = CaptionCollator(
        tokenizer=tokenizer,
        image_processor=image_processor,
        embeddings=None,
        image_ids=train["image_id"],
        captions_per_image=settings.captions_per_image,
        max_length=settings.max_caption_length,
    )
    trainer = TeacherForcing(
        model=model, args=training, train_dataset=train, data_collator=collator, processing_class=tokenizer
    )
    trainer.drop_images = settings.drop_images
    trainer.train()
    trainer.save_model(training.output_dir)
    if trainer.is_world_process_zero():
        save_tokenizer(tokenizer, training.output_dir)
        image_processor.save_pretrained(training.output_dir)
        log = Path(training.output_dir) / "training_log.json"
        log.write_text(json.dumps(trainer.state.log_history, indent=2) + "\n")
        with trainer.accelerator.autocast():
            captions = write_captions(model.eval(), tokenizer, image_processor, validation, batch_size=50)
        metrics = {"steps": trainer.state.global_step, **Gallery(validation, {}).measure(captions)}
        (Path(training.output_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")


if __name__ == "__main__":
    with clear_errors():
        main()
