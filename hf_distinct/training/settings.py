"""Settings that do not fit the trainer's other arguments, or do nothing beside another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers.trainer_utils import IntervalStrategy

import hf_distinct.evaluation as evaluation
from hf_distinct.generation.word_limits import left_out

if TYPE_CHECKING:
    from transformers import GenerationConfig, TrainingArguments

    from hf_distinct.config import RLCaptionConfig

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
    ("log_completions", False, ("num_completions_to_print",)),
)
"""A setting, its value, and the settings that then do nothing."""


def idle_settings(args: RLCaptionConfig, saved: GenerationConfig | None) -> Iterator[str]:
    """Sentences on what was set and does nothing: a reason to warn.

    Args:
        args: the settings, one of which may do nothing beside another.
        saved: the captioner's generation config, of which rollouts do not follow all.
    """
    if unkept := left_out(saved, args.rollouts):
        yield (
            f"The captioner's generation config asks for {', '.join(f'{k}={v}' for k, v in unkept.items())}. "
            "Evaluations and the saved captioner follow it; rollouts do not."
        )
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
