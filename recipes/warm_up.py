r"""Train a captioner by teacher forcing, as a start for reinforcement learning.

    hf-distinct warm-up                                                          # a small captioner of emoji scenes
    hf-distinct warm-up --dataset captions.json --image_root images \
        --encoder google/vit-base-patch16-224-in21k --decoder gpt2               # pretrained parts, your own pictures
    hf-distinct warm-up flickr8k/captioner.yaml --dataset dataset_flickr8k.json  # a new decoder for a given encoder

The recipe builds a VisionEncoderDecoderModel from an encoder and a decoder, each pretrained or new, and trains it on
pictures and their captions. With `--model_type blip` or `git` it builds a new one of those; with --model_name_or_path
it trains a captioner of any of these kinds further. It writes to --output_dir the captioner with its tokenizer and
image processor, which transformers loads without hf_distinct, and also metrics.json and training_log.json.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import set_seed

from hf_distinct.data.augmentation import Augmentation
from hf_distinct.data.emoji.captions import CAPTION_STYLES
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.files import run_lock
from hf_distinct.files.disk_space import named_errors
from hf_distinct.files.parts import written_together
from hf_distinct.gallery import Gallery
from hf_distinct.generation.rollouts import rollout_config
from hf_distinct.inference.pipelines import save_processors
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small, unused_settings
from hf_distinct.runs.building import build_captioner
from hf_distinct.runs.captioner_settings import CaptionerSettings
from hf_distinct.runs.dataset_settings import HELP
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import output_problems, write_json
from hf_distinct.runs.training_arguments import SupervisedArguments
from hf_distinct.text.problems import refuse
from hf_distinct.training.supervised import early_stopping
from hf_distinct.training.teacher_forcing import TeacherForcing

logger = logging.getLogger("warm_up")

NEW_RATE, PRETRAINED_RATE = 1.5e-3, 5e-5
STEPS, EPOCHS = 2500, 3.0  # our default, and transformers' own
VIEWS = Augmentation(crop=(0.6, 1.0))
LEAST = {"train_size": 1, "captions_per_image": 1, "validation_size": 1, "early_stopping_patience": 1}


@dataclass
class Settings(CaptionerSettings):
    """Which captioner to train, and on which pictures.

    Raises:
        ValueError: a setting is not possible, or has no effect with the others.
    """

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
    captions_per_image: int = field(default=5, metadata={"help": HELP["captions_per_image"]})
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

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        yield from super().problems()
        if self.freeze_encoder:
            yield from unused_settings(self, ("encoder_learning_rate",), "with --freeze_encoder true")
        else:
            yield from unused_settings(self, ("encoder_cache",), "without --freeze_encoder true")
        if self.encoder_cache:
            yield from unused_settings(self, ("augment",), "with --encoder_cache, which holds each picture unchanged")
        if not 0 <= self.drop_images < 1:
            yield f"drop_images={self.drop_images} must be a fraction from 0 to less than 1."
        yield from too_small(self, **LEAST)
        if self.encoder_learning_rate is not None and self.encoder_learning_rate <= 0:
            yield (
                f"encoder_learning_rate={self.encoder_learning_rate} must be above 0; to keep the encoder as it is, "
                "set --freeze_encoder true."
            )

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
