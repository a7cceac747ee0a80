"""Distillation: train an image encoder of stock transformers classes to predict the features of a pretrained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, Image
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import BaseImageProcessor, PreTrainedModel, Seq2SeqTrainingArguments, TrainerCallback

from hf_distinct.data.augmentation import Augmentation
from hf_distinct.data.collator import SharedEpoch, decoded
from hf_distinct.data.images import decode_image, to_pixel_values
from hf_distinct.data.workers import fit_trainer, share
from hf_distinct.files import checkpoints
from hf_distinct.training.supervised import SupervisedTrainer
from hf_distinct.training.training_data import EpochCallback, seed_of_data

CUT = {"do_resize": False, "do_center_crop": False}  # for views that already have the image processor's size


class Student(nn.Module):
    """An encoder with linear heads from its feature maps to those of the teacher; the heads are only for training.

    The encoder's output is paired with the teacher's last map. With hints (Romero et al. 2015, "FitNets"), the map of
    each earlier stage is paired with the teacher's map of the same height.

    Args:
        encoder: a stock model; its output is `(B, S, H)`, where the S positions form a square, possibly after a class
            token.
        teacher: a timm model.
        pixels: `(1, 3, height, width)`, an image of full size.
        hints: also compare earlier stages.
    """

    def __init__(self, encoder: PreTrainedModel, teacher: nn.Module, pixels: Tensor, hints: bool) -> None:
        super().__init__()
        self.encoder, self.hints = encoder, hints
        with torch.no_grad():
            own, theirs = self._maps(pixels), teacher_maps(teacher, pixels)
        by_height = {each.shape[1]: place for place, each in enumerate(theirs)}
        wanted = [by_height.get(each.shape[1]) for each in own[:-1]] + [len(theirs) - 1]
        self.pairs = [(mine, their) for mine, their in enumerate(wanted) if their is not None]
        self.heads = nn.ModuleList(nn.Linear(own[i].shape[-1], theirs[j].shape[-1]) for i, j in self.pairs)

    def forward(self, pixel_values: Tensor) -> list[tuple[Tensor, int]]:
        """Return predictions of the teacher's maps, `(B, h, w, C)`, each with the map's index; the last map last."""
        own = self._maps(pixel_values)
        return [(head(own[i]), j) for head, (i, j) in zip(self.heads, self.pairs, strict=True)]

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        # The call that `generate` of a captioner makes, which not every encoder supports.
        outputs: Any = self.encoder(pixels, output_attentions=None, output_hidden_states=self.hints, return_dict=True)
        tokens = outputs.last_hidden_state
        if tokens.dim() != 3:
            raise ValueError(f"its output has the shape {tuple(tokens.shape)}, but captioners need (B, S, H)")
        side = int(tokens.shape[1] ** 0.5)
        last = tokens[:, tokens.shape[1] - side**2 :].unflatten(1, (side, side))
        stages = [each for each in (outputs.hidden_states or ())[:-1] if each.dim() == 4 and each.shape[1] > 3]
        return [*(each.permute(0, 2, 3, 1) for each in stages), last]


def build_student(encoder: PreTrainedModel, teacher: nn.Module, sides: Sequence[int], hints: bool) -> Student:
    """Create a student, and try it with its teacher on grey views of each size.

    Args:
        encoder: see `Student`.
        teacher: see `Student`.
        sides: sizes of the views in pixels; the first is that of whole images.
        hints: see `Student`.

    Raises:
        ValueError: the encoder is not suitable for a captioner, or one of the models does not support a size.
    """
    views = [torch.zeros(1, 3, side, side) for side in sides]
    try:
        student = Student(encoder, teacher, views[0], hints)
        with torch.no_grad():
            for view in views:
                imitation_loss(student(view), teacher_maps(teacher, view), 1.0)
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:  # from any library's model
        raise ValueError(
            f"A {type(encoder).__name__} cannot learn from this teacher with views of {' and '.join(map(str, sides))} "
            f"pixels: {' '.join(str(error).split())}"
        ) from error
    return student


def teacher_maps(teacher: Any, pixels: Tensor) -> list[Tensor]:
    """Return a timm model's feature maps after each stage, `(B, h, w, C)`, normalised by LayerNorm without weights."""
    maps = teacher.forward_intermediates(pixels, intermediates_only=True)
    channels_last = [each.float().permute(0, 2, 3, 1) for each in maps]
    return [F.layer_norm(each, each.shape[-1:]) for each in channels_last]


def resized(maps: Tensor, like: Tensor) -> Tensor:
    """Resize maps `(B, h, w, C)` to the height and width of others."""
    if maps.shape[1:3] == like.shape[1:3]:
        return maps
    found = F.interpolate(maps.permute(0, 3, 1, 2), like.shape[1:3], mode="bilinear", antialias=True)
    return found.permute(0, 2, 3, 1)


def imitation_loss(found: Sequence[tuple[Tensor, int]], wanted: Sequence[Tensor], hint_weight: float) -> Tensor:
    """Return the mean squared error of the last map, plus ``hint_weight`` times the mean error of earlier maps."""
    errors = [F.mse_loss(mine.float(), resized(wanted[place], mine)) for mine, place in found]
    return errors[-1] + hint_weight * sum(errors[:-1], torch.zeros(())) / max(len(errors) - 1, 1)


@dataclass
class ViewCollator:
    """Creates `pixel_values` (B, 3, H, W) from rows with `image` and `image_id`: views that change in each epoch.

    Args:
        image_processor: resizes views of whole images, and normalises all views.
        crops: views of small parts, which are faster.
        whole: views of whole images.
        whole_from: the epoch from which on `whole` is used.
        seed: seed of the views.
        epoch: the current epoch, which worker processes see change.
    """

    image_processor: BaseImageProcessor
    crops: Augmentation
    whole: Augmentation
    whole_from: int
    seed: int = 0
    epoch: SharedEpoch = SharedEpoch()

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Create a batch.

        Raises:
            ValueError: no image can be decoded; a single one is left out with a warning.
        """
        batch = {"pixel_values": decoded(rows, self._pixels)[1]}
        share(batch.values())
        return batch

    def _pixels(self, row: dict[str, Any]) -> Tensor:
        epoch = self.epoch or 0
        views, settings = (self.crops, CUT) if epoch < self.whole_from else (self.whole, {})
        view = views(decode_image(row["image"]), f"{self.seed}:{epoch}:{row['image_id']}")
        return to_pixel_values([view], self.image_processor, **settings)[0]


class Distillation(SupervisedTrainer):
    """Trains an encoder to predict the feature maps of a frozen teacher.

    Evaluation measures, on whole images, the explained variance of the teacher's last map and the cosine similarity:
    ``{"eval_R2": ..., "eval_cosine": ...}``. A loss, gradient or weight that is not finite stops the training.

    Args:
        student: encoder and heads.
        teacher: a timm model.
        args: the training arguments.
        train_dataset: ``image``, ``image_id``; other columns are ignored.
        eval_dataset: the same.
        collator: creates the views, crops in the first epochs; see `ViewCollator`.
        hint_weight: weight of the earlier maps in the loss.
        callbacks: as for any Trainer.
    """

    trained = "encoder"

    def __init__(
        self,
        student: Student,
        teacher: nn.Module,
        args: Seq2SeqTrainingArguments,
        *,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        collator: ViewCollator,
        hint_weight: float,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        fit_trainer(args, collator.image_processor)
        collator.seed, collator.epoch = seed_of_data(args), 0
        super().__init__(
            model=student,
            args=args,
            train_dataset=train_dataset.cast_column("image", Image(decode=False)),
            eval_dataset=eval_dataset.cast_column("image", Image(decode=False)),
            data_collator=collator,
            callbacks=[*callbacks, EpochCallback(collator)],
        )
        self.model_accepts_loss_kwargs = False  # otherwise it would not average the loss over accumulated batches
        self.student = student
        # timm's convolutions are twice as fast in channels_last.
        teacher = teacher.to(self.args.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = teacher.eval().requires_grad_(False)
        self.hint_weight, self.image_processor = hint_weight, collator.image_processor

    def _wanted(self, pixels: Tensor) -> list[Tensor]:
        with torch.no_grad(), self.accelerator.autocast():
            return teacher_maps(self.teacher, pixels.contiguous(memory_format=torch.channels_last))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See `imitation_loss`."""
        found = model(inputs["pixel_values"])
        loss = imitation_loss(found, self._wanted(inputs["pixel_values"]), self.hint_weight)
        return (loss, {"maps": found}) if return_outputs else loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the encoder with its image processor; in checkpoints, save the whole student.

        Raises:
            OSError: the folder could not be written.
            ValueError: a weight is NaN or infinite.
        """
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        self._refuse_weights_that_are_not_finite(self.model_wrapped)
        folder = output_dir or str(self.args.output_dir)
        if self.args.should_save:
            with checkpoints.written_to(folder, str(self.args.output_dir)):
                self.student.encoder.save_pretrained(folder)
                self.image_processor.save_pretrained(folder)

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compare the last maps on the evaluation images; every process evaluates all of them."""
        dataset: Any = self.eval_dataset
        self.student.eval()
        size = self.args.eval_batch_size
        rows = [dataset.select(range(at, min(at + size, len(dataset)))) for at in range(0, len(dataset), size)]
        pairs = [self._compared(list(each)) for each in rows]
        mine, wanted = (torch.cat(each) for each in zip(*pairs, strict=True))
        spread = (wanted - wanted.mean(dim=0)).pow(2).sum()
        metrics = {
            "eval_R2": float(1 - (mine - wanted).pow(2).sum() / spread),
            "eval_cosine": float(F.cosine_similarity(mine, wanted, dim=-1).mean()),
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _compared(self, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
        """Return the student's and the teacher's features, `(positions, C)` each."""
        pixels = decoded(rows, self._whole)[1].to(self.args.device)
        with self.accelerator.autocast():
            mine, place = self.student(pixels)[-1]
        return mine.float().flatten(0, 2).cpu(), resized(self._wanted(pixels)[place], mine).flatten(0, 2).cpu()

    def _whole(self, row: dict[str, Any]) -> Tensor:
        return to_pixel_values([decode_image(row["image"])], self.image_processor)[0]
