"""Settings that would be ignored in silence, or fail in the middle of a training: each is named at construction."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import IntervalStrategy

import hf_distinct.evaluation as evaluation

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from hf_distinct.config import RLCaptionConfig

_EVALUATION = "An evaluation writes captions and computes caption_metrics of them; it computes no loss and no logits."
_TOKENS = "It would count the pixels of the images as tokens."
_COMPILE = "Captions are written and scored by hooks in the model's layers, which torch.compile cannot follow."
_FSDP = "Captions are written by the whole model. To divide it, use DeepSpeed (recipes/accelerate/zero3.yaml)."
_LIGER = "Liger has no kernels for a VisionEncoderDecoderModel."

REFUSED: dict[str, str] = {
    "auto_find_batch_size": "The reward depends on the batch: set per_device_train_batch_size yourself.",
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": "Set bf16: evaluations use it too.",
    "enable_jit_checkpoint": "It is not needed: SIGTERM always leaves a checkpoint.",
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "fp16_full_eval": "Set fp16: evaluations use it too.",
    "fsdp": _FSDP,
    "include_for_metrics": "caption_metrics gets the captions and the dataset with every column.",
    "include_inputs_for_metrics": "caption_metrics gets the captions and the dataset with every column.",
    "include_num_input_tokens_seen": _TOKENS,
    "include_tokens_per_second": _TOKENS,
    "jit_mode_eval": _EVALUATION,
    "label_names": "The labels are in `labels`.",
    "label_smoothing_factor": "The loss weights whole captions and smooths no token. recipes/warm_up.py takes it.",
    "liger_kernel_config": _LIGER,
    "neftune_noise_alpha": "The captioner trains in eval mode, in which NEFTune adds no noise.",
    "parallelism_config": "Only data parallelism and DeepSpeed are supported.",
    "past_index": "A captioner keeps no state from one batch to the next.",
    "prediction_loss_only": _EVALUATION,
    "sortish_sampler": "No Trainer reads it. Images are drawn in random order, or as hard_batches says.",
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "torchdynamo": _COMPILE,
    "use_cache": "Generation always uses a cache, the training pass never does.",
    "use_legacy_prediction_loop": _EVALUATION,
    "use_liger_kernel": _LIGER,
}
"""Settings of ``Seq2SeqTrainingArguments`` that could have no effect here, or a wrong one, and why or what to do."""

# Other spellings of a default, which the parent itself puts in its place; and the name that labels have anyway.
_SAME = {"include_num_input_tokens_seen": (False, "no"), "label_names": (["labels"],)}

_BY_LAUNCHER = {"ACCELERATE_USE_FSDP": ("false", _FSDP), "ACCELERATE_DYNAMO_BACKEND": ("no", _COMPILE)}
_ACCELERATOR = {"split_batches": False, "dispatch_batches": None, "even_batches": True}


def refused_settings(args: Any) -> Iterator[str]:
    """Sentences on each setting of the parent that is not supported and was set away from its default.

    Args:
        args: a dataclass with the fields of ``Seq2SeqTrainingArguments``, as it was made.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name not in REFUSED or value in _SAME.get(field.name, ()):
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default and (value or default):  # one kind of nothing is as good as another
            yield f"{field.name}={value!r} is not supported; leave it at {default!r}. {REFUSED[field.name]}"
    for name, (default, reason) in _BY_LAUNCHER.items():
        value = os.environ.get(name, default)
        if value.lower() != default:
            yield f"The launcher set {name}={value}, which is not supported. {reason}"


def accelerator_problems(config: Any) -> Iterator[str]:
    """Sentences on what of an ``AcceleratorConfig`` batches of captions do not allow.

    Args:
        config: ``args.accelerator_config``, once the parent has read it.
    """
    for name, default in _ACCELERATOR.items():
        value = getattr(config, name, default)
        if value not in (default, default or False):
            yield (
                f"accelerator_config: {name}={value!r} is not supported; leave it at {default!r}. Every process makes "
                "its own batches, all of them equally often."
            )


def settings_problems(
    args: RLCaptionConfig,
    *,
    eval_dataset: Any,
    caption_metrics: Any,
    train_columns: Sequence[str],
) -> Iterator[str]:
    """Sentences on settings that do not fit the trainer's other arguments.

    Args:
        args: the settings.
        eval_dataset: a dataset, a dict of them by name, or None.
        caption_metrics: what an evaluation computes, or None.
        train_columns: the columns of the training dataset.
    """
    yield from _evaluation_problems(args, eval_dataset, caption_metrics)
    if args.encoder_cache and not args.freeze_encoder:
        yield "encoder_cache holds the outputs of an encoder that does not change: set freeze_encoder, too."
    order = "group_by_length" if getattr(args, "group_by_length", False) else _strategy(args)
    if order is None:
        return
    if args.hard_batches:
        yield f"{order} and hard_batches both say in which order the images come: choose one of them."
    elif order != "train_sampling_strategy=sequential" and args.length_column_name not in train_columns:
        yield (
            f"{order} needs the column {args.length_column_name!r} (length_column_name) in train_dataset, which has "
            f"{', '.join(train_columns)}."
        )


_IDLE: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("rollouts", "beam", ("temperature",)),
    ("rollouts", "sample", ("num_beams", "no_repeat_ngram_size")),
    ("pool_neighbours", 0, ("neighbour_first_rank",)),
    ("discriminator_weight", 0, ("discriminator_lr", "discriminator_pretrain_steps")),
    ("wtf_weight", 0, ("wtf_policy",)),
    ("alarms", "off", ("alarm_cider_floor",)),
)
"""A setting, its value, and the settings that then do nothing."""


def idle_settings(args: RLCaptionConfig) -> Iterator[str]:
    """Sentences on settings that were told and do nothing beside another one: a reason to warn.

    Args:
        args: the settings.
    """
    yield from idle_precision(args)
    for name, value, idle in _IDLE:
        if getattr(args, name) != value or (name == "pool_neighbours" and args.hard_batches):
            continue
        for each in idle:
            if each in args.changed:
                yield f"{each}={getattr(args, each)} does nothing with {name}={value}."


def idle_precision(args: TrainingArguments) -> Iterator[str]:
    """A sentence on ``fp16`` where nothing computes in it.

    Args:
        args: the settings.
    """
    if args.fp16 and args.device.type == "cpu" and not args.deepspeed:
        yield "fp16=True does nothing on a CPU, which trains in float32. Half precision on a CPU is bf16."


def _strategy(args: Any) -> str | None:
    """The order of the rows as transformers 5 sets it, unless it is the usual one."""
    strategy = getattr(args, "train_sampling_strategy", "random")
    return None if strategy == "random" else f"train_sampling_strategy={strategy}"


def _evaluation_problems(args: RLCaptionConfig, eval_dataset: Any, caption_metrics: Any) -> Iterator[str]:
    when = "eval_on_start" if args.eval_on_start else None
    when = when if args.eval_strategy == "no" else f"eval_strategy={IntervalStrategy(args.eval_strategy).value}"
    for name, value in (("eval_dataset", eval_dataset), ("caption_metrics", caption_metrics)):
        if when and value is None:
            yield (
                f"{when} needs {name}: pass it to the trainer, or set eval_strategy to 'no' and eval_on_start to "
                "False."
            )
    if isinstance(eval_dataset, dict) and not eval_dataset:
        yield "eval_dataset is a dict without any dataset."
    best = "load_best_model_at_end" if args.load_best_model_at_end else None
    best = "save_strategy=best" if args.save_strategy == "best" else best
    if best and args.eval_strategy == "no":
        yield f"{best} needs evaluations to choose by: set eval_strategy and eval_steps."
    elif args.metric_for_best_model is not None and args.eval_strategy != "no":
        yield from _metric_problems(args.metric_for_best_model, eval_dataset, caption_metrics)


def _metric_problems(metric: str, eval_dataset: Any, caption_metrics: Any) -> Iterator[str]:
    """Check the name of a metric before there is an evaluation: its dataset, and our own metrics by name."""
    name = metric.removeprefix("eval_")
    if isinstance(eval_dataset, dict):
        own = [part for part in eval_dataset if name.startswith(f"{part}_")]
        if not own:
            yield (
                f"metric_for_best_model={metric!r} belongs to none of the datasets in eval_dataset: begin it with the "
                f"name of one, as in {next(iter(eval_dataset), 'name')}_{name}."
            )
            return
        name = name.removeprefix(f"{max(own, key=len)}_")
    if caption_metrics is evaluation.caption_metrics:
        known = evaluation.caption_metrics(["a dog", "a cat"], [["a dog"], ["a cat"]])
        if name not in known:
            yield (
                f"metric_for_best_model={metric!r} is not among what hf_distinct.caption_metrics computes: "
                f"{', '.join(known)}."
            )
