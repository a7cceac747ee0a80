"""Teacher forcing: cross-entropy training on reference captions, before reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)
from transformers.utils import logging

from hf_distinct.captioner import caption_logits, captioner_in, encode
from hf_distinct.data.augmentation import Augmentation
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.images import ImageError
from hf_distinct.data.workers import fit_trainer
from hf_distinct.distributed.zero3 import generation_ready
from hf_distinct.evaluation.diversity import unique_share
from hf_distinct.families import family_of
from hf_distinct.gallery import Gallery
from hf_distinct.generation.guidance import drop_images
from hf_distinct.inference.captioner_fit import check_fit, decoder_positions
from hf_distinct.inference.dataset_captions import write_captions
from hf_distinct.training.alarms import AlarmCallback, Bound, bounds
from hf_distinct.training.settings import idle_precision
from hf_distinct.training.supervised import SupervisedTrainer
from hf_distinct.training.training_data import EpochCallback, encoded_once, seed_of_data

logger = logging.get_logger(__name__)

UNUSED = {
    "predict_with_generate": "evaluation always writes captions",
    "generation_max_length": "captions are written with the model's own generation config",
    "generation_num_beams": "captions are written with the model's own generation config",
    "generation_config": "captions are written with the model's own generation config",
    "prediction_loss_only": "evaluation measures captions",
    "include_for_metrics": "evaluation measures captions",
    "batch_eval_metrics": "evaluation measures captions",
    "eval_accumulation_steps": "evaluation measures captions",
    "do_predict": "`hf-distinct evaluate` measures test splits",
    "push_to_hub": "push the output with `hf-distinct push`",
}
"""Trainer arguments that have no effect in teacher forcing, and why."""


def teacher_forcing_problems(args: Seq2SeqTrainingArguments) -> Iterator[str]:
    """Yield a sentence for each argument that would be ignored, or would fail late in the training."""
    for name, why in UNUSED.items():
        if getattr(args, name, None):
            yield f"--{name} has no effect in teacher forcing: {why}."
    if args.load_best_model_at_end and args.metric_for_best_model in (None, "loss", "eval_loss"):
        yield "load_best_model_at_end needs metric_for_best_model, e.g. CIDEr-D: evaluation computes no loss."


class TeacherForcing(SupervisedTrainer):
    """Trains a captioner by cross-entropy on several captions per image, encoding each image once.

    Before training, two images are captioned, to detect errors that would otherwise occur at the end. A loss, gradient
    or weight that is NaN or infinite in any process stops the training without saving. Evaluation captions the
    gallery; alarms warn if many images get the same caption or captions stop in mid-phrase. An encoder without
    trainable weights is kept in eval mode, so that it has no dropout and keeps its batch statistics.

    Args:
        model: the captioner.
        args: ``label_smoothing_factor`` and mixed precision work as in any Trainer.
        train_dataset: ``image``, ``captions``, ``image_id``.
        gallery: the images for evaluation.
        processing_class: the captioner's tokenizer.
        image_processor: the captioner's image processor.
        captions_per_image: captions per image and step.
        max_length: maximum number of tokens per caption, end token included.
        dropped_images: fraction of captions that are trained without their image.
        encoder_learning_rate: peak learning rate of the encoder; by default ``args.learning_rate``.
        augmentation: creates a view of each image, a different one in each epoch.
        encoder_cache: folder to store the outputs of a frozen encoder; None computes them in each step.
        callbacks: as for any Trainer.

    Raises:
        ValueError: the parts do not fit together, or the captioner cannot write captions.
    """

    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: PreTrainedModel,
        args: Seq2SeqTrainingArguments,
        *,
        train_dataset: Dataset,
        gallery: Gallery,
        processing_class: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        captions_per_image: int = 1,
        max_length: int = 24,
        dropped_images: float = 0.0,
        encoder_learning_rate: float | None = None,
        augmentation: Augmentation | None = None,
        encoder_cache: str | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        check_fit(model, processing_class, image_processor, args, teacher_forcing_problems(args))
        if max_length > (most := decoder_positions(model)):
            raise ValueError(f"Captions of {max_length} tokens do not fit the decoder, which has {most} positions.")
        learns = any(weight.requires_grad for weight in family_of(model).encoder.parameters())
        if encoder_cache and (augmentation or learns):
            raise ValueError("encoder_cache needs a frozen encoder, and images without augmentation.")
        for idle in idle_precision(args):
            logger.warning(idle)
        self.gallery, self.image_processor, self.dropped_images = gallery, image_processor, dropped_images
        self.encoder_learning_rate = encoder_learning_rate
        self.alarms = AlarmCallback()
        self.alarms.bounds = _bounds(gallery.references)
        fit_trainer(args, image_processor)
        collator = CaptionCollator(
            processing_class, image_processor, captions_per_image=captions_per_image, max_length=max_length,
            seed=seed_of_data(args), epoch=0, augmentation=augmentation,
        )  # fmt: skip
        collator.encoded = encoded_once(train_dataset, model, image_processor, encoder_cache, args.device)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=gallery.dataset,
            data_collator=collator,
            processing_class=processing_class,
            callbacks=[self.alarms, EpochCallback(collator), *callbacks],
        )
        self.model_accepts_loss_kwargs = False  # otherwise it would not average the loss over accumulated batches

    def caption(self, dataset: Dataset) -> list[str | None]:
        """Caption each row with the model's own generation config; None for an image that cannot be read."""
        with generation_ready(self.model_wrapped, self.accelerator) as model, self.accelerator.autocast():
            model.eval()
            said = write_captions(
                model, self.processing_class, self.image_processor, dataset, self.args.per_device_eval_batch_size
            )
        return [None if isinstance(each, ImageError) else each for each in said]

    # --------------------------------------------------------------------------------------------------------- steps

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimiser like the parent, with a separate learning rate for the encoder if it is set."""
        made = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.encoder_learning_rate is not None and not made:
            encoder = family_of(captioner_in(self.model, self.accelerator)).encoder
            own = {id(parameter) for parameter in encoder.parameters()}
            for group in list(optimizer.param_groups):
                weights = [each for each in group["params"] if id(each) in own]
                group["params"] = [each for each in group["params"] if id(each) not in own]
                optimizer.add_param_group({**group, "params": weights, "lr": self.encoder_learning_rate})
            # DeepSpeed would remove empty groups after the scheduler has counted them.
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean cross-entropy of the captions' tokens, with ``label_smoothing_factor``."""
        labels = inputs["labels"]
        encoder = family_of(captioner_in(model, self.accelerator)).encoder
        if not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
        hidden = encode(encoder, inputs["pixel_values"], self.accelerator)
        if self.dropped_images:
            hidden = drop_images(hidden.repeat_interleave(labels.shape[1], dim=0), self.dropped_images)
        # Not the model's own loss: transformers 4.50 to 4.57 shift the labels a second time, so the captioner would
        # learn to leave out every other word (huggingface/transformers#40111).
        logits = caption_logits(model, hidden, labels.flatten(0, 1))
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=self.args.label_smoothing_factor
        )
        return (loss, {"logits": logits}) if return_outputs else loss

    # ---------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Caption the gallery and measure the captions: ``{"eval_CIDEr-D": ..., "eval_unique": ...}``."""
        found, (captions,) = self.gallery.captioned(self.caption(self.gallery.dataset))
        measured = found.measure(captions)
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        metrics |= self.alarms.watch(metrics, self.state.global_step)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def last_alarms(self, metrics: dict[str, float]) -> list[str]:
        """Return sentences about metrics of a final evaluation that are out of bounds; one value is enough here."""
        return [
            f"alarm/{bound.alarm}: {why}"
            for name, value in metrics.items()
            for bound in self.alarms.bounds
            if bound.watches(name) and (why := bound.broken(name, value, value))
        ]


def _bounds(references: Sequence[Sequence[str]]) -> list[Bound]:
    """Return bounds that need no first value: they are derived from people's captions."""
    people = unique_share([own[0] for own in references])
    meaning = f"one caption for many images; for people's captions it is {people:.4g}"
    absolute = [bound for bound in bounds(0.0) if bound.evaluated and not bound.of_first]
    return [Bound("unique", "unique", meaning, least=people / 2, evaluated=True), *absolute]
