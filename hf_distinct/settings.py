"""Reject inherited settings that would be ignored silently or fail in the middle of a training."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, TypeVar

_EVALUATION = "An evaluation writes captions and computes caption_metrics of them; it computes no loss and no logits."
_TOKENS = "It would count the pixels of the images as tokens."
_COMPILE = "Captions are written and scored by hooks in the model's layers, which torch.compile cannot follow."
_FSDP = (
    "Captions are written by the whole model. To divide it, use DeepSpeed: "
    "`hf-distinct train --accelerate_config zero3`."
)
_LIGER = "Liger has no kernels for these captioners."

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
    "label_smoothing_factor": "The loss weights whole captions and smooths no token. `hf-distinct warm-up` takes it.",
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
"""Settings of ``Seq2SeqTrainingArguments`` that would have no effect or a wrong one, with the reason or a remedy."""

# Other spellings of a default, which Seq2SeqTrainingArguments replaces itself; and the usual name of the labels.
_SAME = {"include_num_input_tokens_seen": (False, "no"), "label_names": (["labels"],)}

Settings = TypeVar("Settings")
_ENTRY = re.compile(r"^ {4}(\w+) \(.+\):\n((?: {8}.*\n?)+)", re.MULTILINE)

_BY_LAUNCHER = {"ACCELERATE_USE_FSDP": ("false", _FSDP), "ACCELERATE_DYNAMO_BACKEND": ("no", _COMPILE)}
_ACCELERATOR = {"split_batches": False, "dispatch_batches": None, "even_batches": True}


def refused_settings(args: Any) -> Iterator[str]:
    """Yield a sentence for each unsupported inherited setting that differs from its default.

    Args:
        args: a dataclass with the fields of ``Seq2SeqTrainingArguments``.
    """
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name not in REFUSED or value in _SAME.get(field.name, ()):
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default and (value or default):  # None, "" and False are equivalent
            yield f"{field.name}={value!r} is not supported; leave it at {default!r}. {REFUSED[field.name]}"
    for name, (default, reason) in _BY_LAUNCHER.items():
        value = os.environ.get(name, default)
        if value.lower() != default:
            yield f"The launcher set {name}={value}, which is not supported. {reason}"


def accelerator_problems(config: Any) -> Iterator[str]:
    """Yield a sentence for each ``AcceleratorConfig`` setting that caption batches do not support.

    Args:
        config: ``args.accelerator_config``, after Seq2SeqTrainingArguments has parsed it.
    """
    for name, default in _ACCELERATOR.items():
        value = getattr(config, name, default)
        if value not in (default, default or False):
            yield (
                f"accelerator_config: {name}={value!r} is not supported; leave it at {default!r}. Every process makes "
                "its own batches, all of them equally often."
            )



def changed_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that differ from their defaults.

    Args:
        settings: an instance of a dataclass. A field without a default counts as changed; None and "" are equivalent.

    Returns:
        Values by name, in the order of the dataclass.
    """
    changed = {}
    for field in dataclasses.fields(settings):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(settings, field.name)
        nothing = value in (None, "") and default in (None, "")
        if field.init and value != default and not nothing:
            changed[field.name] = value
    return changed


def help_from_docstring(cls: type[Settings]) -> type[Settings]:
    """Decorate a dataclass so that what its docstring says of a field is the field's ``--help``.

    Entries have the form of transformers' configuration classes:

        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature.

    Args:
        cls: A dataclass. Fields of its parents, and fields without an entry, stay as they are.
    """
    fields: Any = cls
    for name, text in _ENTRY.findall(inspect.cleandoc(cls.__doc__ or "")):
        if name in cls.__annotations__:
            words = " ".join(text.split()).replace("%", "%%")  # argparse formats it
            field = fields.__dataclass_fields__[name]
            field.metadata = MappingProxyType({**field.metadata, "help": words})
    return cls
