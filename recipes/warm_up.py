r"""Train a captioner by teacher forcing, as a start for reinforcement learning.

    hf-distinct warm-up                                                          # a small captioner of emoji scenes
    hf-distinct warm-up --dataset captions.json --image_root images \
        --encoder google/vit-base-patch16-224-in21k --decoder gpt2               # pretrained parts, your own pictures
    hf-distinct warm-up flickr8k/captioner.yaml --dataset dataset_flickr8k.json  # a new decoder for a given encoder

The recipe builds a VisionEncoderDecoderModel from an encoder and a decoder, each pretrained or new, and trains it on
pictures and their captions. It writes to --output_dir the captioner with its tokenizer and image processor, which
transformers loads without hf_distinct, and also metrics.json and training_log.json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
    set_seed,
)

from hf_distinct.data.augmentation import Augmentation
from hf_distinct.data.emoji.captions import CAPTION_STYLES
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.images import to_pixel_values
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.files import run_lock
from hf_distinct.files.disk_space import named_errors
from hf_distinct.files.parts import written_together
from hf_distinct.files.safe_loading import refuse_code
from hf_distinct.gallery import Gallery
from hf_distinct.generation.rollouts import rollout_config
from hf_distinct.generation.special_tokens import complete_special_tokens, set_special_tokens
from hf_distinct.inference.captioner_fit import decoder_positions
from hf_distinct.inference.pipelines import load_captioner, load_image_processor, save_processors
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small, unused_settings
from hf_distinct.runs.dataset_settings import CAPTIONER_FORMS, HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import output_problems, write_json
from hf_distinct.runs.training_arguments import SupervisedArguments
from hf_distinct.text.problems import refuse
from hf_distinct.training.supervised import early_stopping
from hf_distinct.training.teacher_forcing import TeacherForcing

logger = logging.getLogger("warm_up")

DEFAULT_LENGTH = 24
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


HEAD_WIDTH = 32  # of a new decoder's attention
POSITIONS = 32  # of a new decoder, which has more where captions are longer
IMAGE_SIZE = 64
NEW_RATE, PRETRAINED_RATE = 1.5e-3, 5e-5
STEPS, EPOCHS = 2500, 3.0  # our default, and transformers' own
VIEWS = Augmentation(crop=(0.6, 1.0))
OF_NEW_DECODER = ("decoder_layers", "decoder_width", "decoder_dropout", "tokenizer", "min_word_count")
LEAST = {
    "train_size": 1, "captions_per_image": 1, "decoder_layers": 1, "decoder_width": 1, "min_word_count": 1,
    "validation_size": 1, "early_stopping_patience": 1, "max_caption_length": 2,
}  # fmt: skip


@dataclass
class Settings(DatasetSettings):
    """Which captioner to train, and on which pictures.

    Raises:
        ValueError: a setting is not possible, or has no effect with the others.
    """

    encoder: str | None = field(
        default=None, metadata={"help": "Pretrained image encoder: a folder or a Hub id. Default: a small new one."}
    )
    decoder: str | None = field(
        default=None, metadata={"help": "Pretrained language model: a folder or a Hub id. Default: a small new GPT-2."}
    )
    encoder_config: str = field(
        default=json.dumps(SMALL_ENCODER), metadata={"help": "Configuration of a new encoder: transformers' as JSON."}
    )
    decoder_layers: int = field(default=2, metadata={"help": "Number of layers of a new decoder."})
    decoder_width: int = field(
        default=128, metadata={"help": f"Hidden size of a new decoder, a multiple of {HEAD_WIDTH}."}
    )
    decoder_dropout: float = field(default=0.0, metadata={"help": "Dropout of a new decoder."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained tokenizer of a new decoder: a folder or a Hub id. Default: a new one that has the "
            "words of the training captions."
        },
    )
    min_word_count: int = field(
        default=1, metadata={"help": "Number of times that a word must occur to be in a new decoder's vocabulary."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": f"Captioner to train further: {CAPTIONER_FORMS}. Default: one of --encoder and --decoder."},
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Train only the decoder; the encoder keeps its weights and uses no dropout."}
    )
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the encoder. Default: --learning_rate."}
    )
    encoder_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which to cache the outputs of a frozen encoder in float16. Default: the encoder runs "
            "in each step."
        },
    )
    augment: bool = field(
        default=False, metadata={"help": "Crop, mirror and recolour each picture at random during the training."}
    )
    train_size: int = field(default=40000, metadata={"help": HELP["train_size"]})
    caption_style: str = field(
        default="people", metadata={"help": HELP["caption_style"], "choices": list(CAPTION_STYLES)}
    )
    captions_per_image: int = field(
        default=5, metadata={"help": "Number of captions of each image in a step, at most."}
    )
    drop_images: float = field(
        default=0.0,
        metadata={
            "help": "Fraction of captions to train without their picture, which guidance needs (0.5 is usual)."
        },
    )
    validation_size: int = field(default=1000, metadata={"help": HELP["validation_size"]})
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Number of evaluations in a row without a better --metric_for_best_model after which the training "
            "stops. Default: never."
        },
    )
    max_caption_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of a caption, with the end token. Default: that of "
            f"--model_name_or_path, or {DEFAULT_LENGTH} if the decoder has as many positions."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        if self.model_name_or_path is not None:
            parts = ("encoder", "decoder", "encoder_config", *OF_NEW_DECODER)
            yield from unused_settings(self, parts, "with --model_name_or_path, which has an encoder and a decoder")
        else:
            if self.encoder is not None:
                yield from unused_settings(self, ("encoder_config",), "with --encoder: it is for a new encoder")
            if self.decoder is not None:
                yield from unused_settings(self, OF_NEW_DECODER, "with --decoder: it is for a new decoder")
        if self.tokenizer is not None:
            yield from unused_settings(self, ("min_word_count",), "with --tokenizer, which brings its vocabulary")
        if self.freeze_encoder:
            yield from unused_settings(self, ("encoder_learning_rate",), "with --freeze_encoder true")
        else:
            yield from unused_settings(self, ("encoder_cache",), "without --freeze_encoder true")
        if self.encoder_cache:
            yield from unused_settings(self, ("augment",), "with --encoder_cache, which holds each picture unchanged")
        for name in ("drop_images", "decoder_dropout"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} must be a fraction from 0 to less than 1."
        yield from too_small(self, **LEAST)
        if self.decoder_width % HEAD_WIDTH:
            yield f"decoder_width={self.decoder_width} must be a multiple of {HEAD_WIDTH}."
        if self.encoder_learning_rate is not None and self.encoder_learning_rate <= 0:
            yield (
                f"encoder_learning_rate={self.encoder_learning_rate} must be above 0; to keep the encoder as it is, "
                "set --freeze_encoder true."
            )

    @property
    def pretrained(self) -> bool:
        """Whether any part of the captioner has been trained before."""
        return not self.encoder is self.decoder is self.model_name_or_path is None


@dataclass(repr=False)
class Training(SupervisedArguments):
    """Training arguments with defaults for the small captioner."""

    output_dir: str = field(default="outputs/captioner", metadata={"help": "Folder to write the captioner to."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": HELP["per_device_train_batch_size"]})
    learning_rate: float | None = field(  # type: ignore[assignment]  # settled before anything reads it
        default=None,
        metadata={
            "help": f"{HELP['learning_rate']} Default: {NEW_RATE} for a new captioner, {PRETRAINED_RATE} for one with "
            "pretrained parts."
        },
    )
    warmup_steps: int = field(default=100, metadata={"help": HELP["warmup_steps"]})
    weight_decay: float = field(default=0.01, metadata={"help": HELP["weight_decay"]})
    max_steps: int = field(
        default=STEPS, metadata={"help": "Number of optimiser steps. --num_train_epochs overrides this default."}
    )

    def __post_init__(self) -> None:
        if self.num_train_epochs != EPOCHS:  # max_steps would override it
            if self.max_steps not in (STEPS, -1):
                raise ValueError(
                    f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs} both say how long to "
                    "train: set one of them."
                )
            self.max_steps = -1
        super().__post_init__()


def build_captioner(settings: Settings, captions: list[str]) -> tuple[VisionEncoderDecoderModel, Any, Any]:
    """Build or load captioner, tokenizer and image processor; a new decoder gets its vocabulary from the captions.

    Raises:
        OSError, ValueError: a part cannot be loaded, or the two do not fit together.
    """
    model: Any
    if settings.model_name_or_path is not None:
        tokenizer: Any
        model, tokenizer, image_processor = load_captioner(settings.model_name_or_path)
    else:
        encoder, image_processor = build_encoder(settings)
        decoder, tokenizer = build_decoder(settings, captions)
        model = VisionEncoderDecoderModel.from_encoder_decoder_pretrained(encoder_model=encoder, decoder_model=decoder)
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
        model.encoder.requires_grad_(False)
    return model, tokenizer, image_processor


def build_encoder(settings: Settings) -> tuple[Any, Any]:
    """Build or load the image encoder and its image processor."""
    if settings.encoder is not None:
        refuse_code(settings.encoder)
        encoder = AutoModel.from_pretrained(settings.encoder, trust_remote_code=False)
        processor = load_image_processor(settings.encoder)
        if not hasattr(encoder.config, "hidden_size"):  # timm's lack it, and a captioner needs it
            pixels = to_pixel_values([Image.new("RGB", (64, 48))], processor)
            encoder.config.hidden_size = encoder(pixels).last_hidden_state.shape[-1]
        return encoder, processor
    config = json.loads(settings.encoder_config)
    size = config.get("image_size", IMAGE_SIZE)
    height, width = size if isinstance(size, list) else (size, size)
    processor = ViTImageProcessor(size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    return AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config)), processor


def build_decoder(settings: Settings, captions: list[str]) -> tuple[Any, Any]:
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


def build_tokenizer(settings: Settings, captions: list[str], length: int) -> Any:
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


def load_data(settings: Settings, seed: int) -> tuple[Dataset, Dataset]:
    """Load the training split and the validation split."""
    if settings.drawn:
        shares = CAPTION_STYLES[settings.caption_style]
        train = emoji_scenes("train", settings.train_size, 50 + seed, shares=shares)
        return train, emoji_scenes("validation", settings.validation_size, 50 + seed)
    splits = settings.load()
    validation = splits["validation"]
    return splits["train"], validation.select(range(min(settings.validation_size, len(validation))))


def main() -> None:
    """Train, save, measure."""
    settings, training = parse_settings(Settings, Training, description=__doc__)
    show_logs("warm_up", main_process=training.process_index == 0)
    models = {name: getattr(settings, name) for name in ("model_name_or_path", "encoder", "decoder", "tokenizer")}
    refuse(output_problems(training.output_dir, models))
    stopping = early_stopping(training, settings.early_stopping_patience)
    if training.process_index == 0:
        run_lock.claim(training.output_dir)
    set_seed(training.seed)
    if training.learning_rate is None:
        training.learning_rate = PRETRAINED_RATE if settings.pretrained else NEW_RATE
    train, validation = load_data(settings, training.seed)
    captions = [caption for row in train["captions"] for caption in row]
    model, tokenizer, image_processor = build_captioner(settings, captions)
    trainer = TeacherForcing(
        model,
        training,
        train_dataset=train,
        gallery=Gallery(validation, {}),
        processing_class=tokenizer,
        image_processor=image_processor,
        captions_per_image=settings.captions_per_image,
        max_length=settings.max_caption_length or rollout_config(model).max_new_tokens,
        dropped_images=settings.drop_images,
        encoder_learning_rate=settings.encoder_learning_rate,
        augmentation=VIEWS if settings.augment else None,
        encoder_cache=settings.encoder_cache,
        callbacks=stopping,
    )
    trainer.train(training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    output = Path(training.output_dir)
    if trainer.is_world_process_zero():
        with named_errors(output), written_together(output) as unfinished:
            save_processors(tokenizer, image_processor, unfinished)
        write_json(output / "training_log.json", trainer.state.log_history)
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        found = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        found = {"steps": trainer.state.global_step, **found}
        write_json(output / "metrics.json", found)
        for told in [*trainer.alarms.told, *trainer.last_alarms(metrics)]:
            print(told)
        print(f"captioner, metrics.json: {training.output_dir}")


if __name__ == "__main__":
    with clear_errors():
        main()
