"""Train an image encoder of transformers to imitate a pretrained image model of timm, as a start for warm-up.

    hf-distinct distill flickr8k/encoder.yaml --dataset dataset_flickr8k.json
    hf-distinct warm-up flickr8k/captioner.yaml --dataset dataset_flickr8k.json       # a captioner on this encoder

pipeline("image-to-text") of transformers cannot load a captioner with a convolutional encoder of timm. This recipe
trains an encoder that it can load to predict the feature maps of such a network (distillation). It reads pictures, not
their captions, and writes to --output_dir the encoder with its image processor, metrics.json and training_log.json. R2
is the fraction of the variance of the teacher's feature maps that the encoder explains on validation pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import resolve_model_data_config
from transformers import AutoConfig, AutoModel, ViTImageProcessor, set_seed

from hf_distinct.clip.image_towers import load_image_tower
from hf_distinct.data.augmentation import Augmentation
from hf_distinct.files import run_lock
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small
from hf_distinct.runs.dataset_settings import HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.results import output_problems, write_json
from hf_distinct.runs.training_arguments import SupervisedArguments
from hf_distinct.text.problems import refuse
from hf_distinct.training.distillation import Distillation, ViewCollator, build_student

# Four stages that halve the picture as a convolutional network does, and two transformer layers over the last map.
STUDENT = {
    "model_type": "segformer",
    "num_encoder_blocks": 5,
    "depths": [2, 2, 3, 3, 2],
    "sr_ratios": [8, 4, 2, 1, 1],
    "hidden_sizes": [32, 64, 160, 320, 320],
    "patch_sizes": [7, 3, 3, 3, 1],
    "strides": [4, 2, 2, 2, 1],
    "num_attention_heads": [1, 2, 5, 10, 10],
    "mlp_ratios": [4, 4, 4, 4, 4],
    "hidden_act": "relu",
    "drop_path_rate": 0.0,
    "hidden_size": 320,
    "reshape_last_stage": False,
}
CROP, WHOLE = (0.2, 0.7), (0.4, 1.0)  # areas of views as fractions of the picture's


@dataclass
class Settings(DatasetSettings):
    """Which encoder imitates which model, and on which pictures.

    Raises:
        ValueError: a setting is missing or not possible.
    """

    teacher: str | None = field(
        default=None,
        metadata={"help": "Image model to imitate: timm's name, such as tf_efficientnet_lite0. You must set it."},
    )
    teacher_weights: str | None = field(
        default=None,
        metadata={
            "help": "Weights of --teacher: a .pth or .safetensors file, or package:NAME/FILE for a file of an "
            "installed package. Default: timm downloads its own."
        },
    )
    encoder_config: str = field(
        default=json.dumps(STUDENT), metadata={"help": "Configuration of a new encoder: transformers' as JSON."}
    )
    crop_size: int = field(default=128, metadata={"help": "Side in pixels of the crops that most epochs train on."})
    whole_epochs: int = field(
        default=2, metadata={"help": "Number of last epochs that train on views of the teacher's full size."}
    )
    hint_weight: float = field(
        default=0.5, metadata={"help": "Weight of the loss on feature maps of earlier stages. 0: only the last map."}
    )
    validation_size: int = field(default=500, metadata={"help": HELP["validation_size"]})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is missing or not possible."""
        if self.drawn:
            yield "distillation needs photographs, not emoji scenes: set --dataset."
        if self.teacher is None:
            yield "--teacher is missing: set timm's name of a pretrained image model, such as tf_efficientnet_lite0."
        yield from too_small(self, crop_size=32, whole_epochs=0, hint_weight=0, validation_size=2)


@dataclass(repr=False)
class Training(SupervisedArguments):
    """Training arguments with defaults for a small encoder."""

    output_dir: str = field(default="outputs/encoder", metadata={"help": "Folder to write the encoder to."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": HELP["per_device_train_batch_size"]})
    learning_rate: float = field(default=1e-3, metadata={"help": HELP["learning_rate"]})
    warmup_steps: int = field(default=200, metadata={"help": HELP["warmup_steps"]})
    weight_decay: float = field(default=0.05, metadata={"help": HELP["weight_decay"]})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second beta of AdamW."})
    num_train_epochs: float = field(default=30, metadata={"help": "Number of epochs."})
    metric_for_best_model: str = field(default="R2", metadata={"help": "Metric that chooses the best checkpoint."})


def processor_of(teacher: Any) -> Any:
    """Build an image processor that turns a whole picture into pixels as the teacher was trained on."""
    data = resolve_model_data_config(teacher)
    _, height, width = data["input_size"]
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=list(data["mean"]), image_std=list(data["std"]),
        resample=Image.Resampling[data["interpolation"].upper()],
    )  # fmt: skip


def number_of_epochs(training: Training, images: int) -> float:
    """Compute how many times the training will see each image."""
    if training.max_steps <= 0:
        return training.num_train_epochs
    step = training.train_batch_size * training.world_size * training.gradient_accumulation_steps
    return training.max_steps * step / images


def main() -> None:
    """Train, save, measure."""
    settings, training = parse_settings(Settings, Training, description=__doc__)
    show_logs("distill", main_process=training.process_index == 0)
    refuse(output_problems(training.output_dir, {}))
    if training.process_index == 0:
        run_lock.claim(training.output_dir)
    set_seed(training.seed)
    assert settings.teacher is not None
    teacher = load_image_tower(settings.teacher, settings.teacher_weights)
    processor = processor_of(teacher)
    splits = settings.load()
    config = json.loads(settings.encoder_config)
    encoder = AutoModel.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    side = processor.size["height"]
    trainer = Distillation(
        build_student(encoder, teacher, (side, settings.crop_size), hints=settings.hint_weight > 0),
        teacher,
        training,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"].select(range(min(settings.validation_size, len(splits["validation"])))),
        collator=ViewCollator(
            processor,
            crops=Augmentation(CROP, settings.crop_size),
            whole=Augmentation(WHOLE, side),
            whole_from=math.ceil(number_of_epochs(training, len(splits["train"]))) - settings.whole_epochs,
        ),
        hint_weight=settings.hint_weight,
    )
    trainer.train(training.resume_from_checkpoint)
    trainer.save_model(training.output_dir)
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    if trainer.is_world_process_zero():
        output = Path(training.output_dir)
        write_json(output / "training_log.json", trainer.state.log_history)
        write_json(output / "metrics.json", {"steps": trainer.state.global_step, **metrics})
        print(f"encoder, metrics.json: {output}; R2 {metrics['R2']:.3f}")


if __name__ == "__main__":
    with clear_errors():
        main()
