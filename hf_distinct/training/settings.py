"""Settings that conflict with the trainer's other arguments, or that have no effect."""

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
    """Yield sentences about settings that conflict with the trainer's other arguments.

    Args:
        args: the settings.
        eval_dataset: a dataset, a dict of datasets, or None.
        caption_metrics: the evaluation's metrics function, or None.
        train_columns: the columns of the training dataset.
    """
    yield from _evaluation_problems(args, eval_dataset, caption_metrics)
    if args.encoder_cache and not args.freeze_encoder:
        yield "encoder_cache stores the outputs of a frozen encoder: set freeze_encoder, too."
    order = "group_by_length" if getattr(args, "group_by_length", False) else _strategy(args)
    if order is None:
        return
    if args.hard_batches:
        yield f"{order} and hard_batches both determine the order of the images: choose one of them."
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
    ("train_scorer", "none", ("scorer_lr", "scorer_decay", "scorer_loss_weights")),
    ("wtf_weight", 0, ("wtf_policy",)),
    ("alarms", "off", ("alarm_cider_floor",)),
    ("log_completions", False, ("num_completions_to_print",)),
)
"""A setting, its value, and the settings that then have no effect."""


def idle_settings(args: RLCaptionConfig, saved: GenerationConfig | None) -> Iterator[str]:
    """Yield sentences about settings that have no effect, to warn about them.

    Args:
        args: the settings.
        saved: the captioner's generation config, some settings of which do not apply to rollouts.
    """
    if unkept := left_out(saved, args.rollouts):
        yield (
            f"The captioner's generation config sets {', '.join(f'{k}={v}' for k, v in unkept.items())}. "
            "Evaluations and the saved captioner use it; rollouts do not."
        )
    yield from idle_precision(args)
    for name, value, idle in _IDLE:
        if getattr(args, name) != value or (name == "pool_neighbours" and args.hard_batches):
            continue
        for each in idle:
            if each in args.changed:
                yield f"{each}={getattr(args, each)} has no effect with {name}={value}."


def idle_precision(args: TrainingArguments) -> Iterator[str]:
    """Yield a sentence about ``fp16`` on a CPU, where it has no effect.

    Args:
        args: the settings.
    """
    if args.fp16 and args.device.type == "cpu" and not args.deepspeed:
        yield "fp16=True has no effect on a CPU, which trains in float32. Half precision on a CPU is bf16."


def _strategy(args: Any) -> str | None:
    """Return transformers 5's setting of the row order, unless it is the default."""
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
        yield "eval_dataset is an empty dict."
    best = "load_best_model_at_end" if args.load_best_model_at_end else None
    best = "save_strategy=best" if args.save_strategy == "best" else best
    if best and args.eval_strategy == "no":
        yield f"{best} needs evaluations: set eval_strategy and eval_steps."
    elif args.metric_for_best_model is not None and args.eval_strategy != "no":
        yield from _metric_problems(args.metric_for_best_model, eval_dataset, caption_metrics)


def _metric_problems(metric: str, eval_dataset: Any, caption_metrics: Any) -> Iterator[str]:
    """Check the name of a metric before the first evaluation: its dataset, and our own metrics by name."""
    name = metric.removeprefix("eval_")
    if isinstance(eval_dataset, dict):
        own = [part for part in eval_dataset if name.startswith(f"{part}_")]
        if not own:
            yield (
                f"metric_for_best_model={metric!r} belongs to none of the datasets in eval_dataset: start it with the "
                f"name of one, as in {next(iter(eval_dataset), 'name')}_{name}."
            )
            return
        name = name.removeprefix(f"{max(own, key=len)}_")
    if caption_metrics is evaluation.caption_metrics:
        known = evaluation.caption_metrics(["a dog", "a cat"], [["a dog"], ["a cat"]])
        if name not in known:
            yield (
                f"metric_for_best_model={metric!r} is not computed by hf_distinct.caption_metrics, which returns "
                f"{', '.join(known)}."
            )
