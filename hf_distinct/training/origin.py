"""The settings and data that a checkpoint was made with, and how they differ from those of a resumed run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from torch import nn
from transformers import Seq2SeqTrainingArguments

from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.selections import batches

# The parent's settings that a step depends on. All of ours count, except those that only affect the display.
_PARENTS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "data_seed", "gradient_accumulation_steps", "learning_rate",
    "lr_scheduler_type", "max_grad_norm", "optim", "per_device_train_batch_size", "seed", "weight_decay",
)  # fmt: skip
_SHOWN = (
    "alarms", "alarm_cider_floor", "fast_paths", "log_completions", "num_completions_to_print", "reward",
    "reward_weights",
)  # fmt: skip
_OF_OPTIMIZERS = ("adam_beta1", "adam_beta2", "adam_epsilon", "discriminator_lr", "learning_rate", "weight_decay")
"""Settings stored in the optimiser's state: the old value is restored with it, whatever the settings say."""
_FIXED = ("freeze_encoder", "optim")
"""Settings that determine the form of the optimiser's state."""


def origin_of(
    args: RLCaptionConfig,
    *,
    scorer: str,
    dataset: Dataset,
    rewards: Sequence[str],
    reward_weights: Sequence[float],
    reference_model: nn.Module | None,
) -> dict[str, Any]:
    """Return what a run is made with, as strings and plain numbers, loadable with ``weights_only=True``.

    Args:
        args: the settings.
        scorer: its fingerprint.
        dataset: the training dataset.
        rewards: names of the rewards.
        reward_weights: their weights.
        reference_model: the captioner that ``args.kl_weight`` measures the divergence from; None without one.
    """
    parents = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    ours = [f.name for f in dataclasses.fields(args) if f.name not in parents and f.name not in _SHOWN]
    settings = {name: getattr(args, name) for name in (*_PARENTS, *ours)}
    return {
        "scorer": scorer,
        "dataset": _digest_of_rows(dataset),
        "rewards": {name: float(weight) for name, weight in zip(rewards, reward_weights, strict=True)},
        "reference_model": None if reference_model is None else _digest_of_weights(reference_model),
        "settings": {name: getattr(value, "value", value) for name, value in settings.items()},
    }


def refusals(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each difference that makes the checkpoint's state unusable.

    Args:
        then: `origin_of` the run that wrote the checkpoint.
        now: `origin_of` the run that resumes from it.
    """
    if then["scorer"] != now["scorer"] and _keeps_embeddings(now):
        yield (
            f"it was written with the scorer of fingerprint {then['scorer']}, but the scorer is {now['scorer']} now, "
            "and discriminator and memory contain embeddings of the first."
        )
    both = then["reference_model"] is not None and now["reference_model"] is not None
    if both and then["reference_model"] != now["reference_model"]:
        yield (
            "kl_weight measures the divergence from the captioner before training, and this run was started with a "
            "different one: pass the captioner of the first run; the checkpoint's weights are loaded into it."
        )
    for name in _FIXED:
        if name in then["settings"] and then["settings"][name] != now["settings"][name]:
            yield (
                f"{name} was {then['settings'][name]} and is {now['settings'][name]} now: the optimiser's state has "
                "another form."
            )


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each difference that does not prevent resuming, and its effect; arguments as `refusals`."""
    if then["dataset"] != now["dataset"]:
        yield (
            f"its training dataset was different ({_rows(then)}, and {_rows(now)} now): the run continues at its "
            "step in the new dataset, with the same optimiser, schedule, discriminator and memory"
        )
    if rewards_differ(then, now):
        yield (
            f"its rewards were {_sum(then)} and are {_sum(now)} now: the state of the alarms is dropped, and "
            "everything else is restored"
        )
    changed = [
        (name, value, now["settings"][name])
        for name, value in then["settings"].items()
        if name in now["settings"] and name not in _FIXED and value != now["settings"][name]
    ]
    if kept := [f"{name} stays {old!r}, not {new!r}" for name, old, new in changed if name in _OF_OPTIMIZERS]:
        yield f"these settings are part of the optimiser's state, which is restored: {', '.join(kept)}"
    if new := [f"{name} {old!r} -> {new!r}" for name, old, new in changed if name not in _OF_OPTIMIZERS]:
        yield f"these settings were changed, and take effect from now on: {', '.join(new)}"


def rewards_differ(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether rewards, their weights or the scorer differ; arguments as `refusals`."""
    return any(then[name] != now[name] for name in ("rewards", "scorer"))


def _keeps_embeddings(origin: Mapping[str, Any]) -> bool:
    return any(origin["settings"][name] for name in ("discriminator_weight", "memory_batches"))


def _rows(origin: Mapping[str, Any]) -> str:
    return f"{origin['dataset'].split(' ')[0]} images"


def _sum(origin: Mapping[str, Any]) -> str:
    rewards = " + ".join(f"{weight:g} {name}" for name, weight in origin["rewards"].items())
    return f"{rewards} (scorer {origin['scorer']})"


def _digest_of_rows(dataset: Dataset) -> str:
    """Return the number of images, and a digest of their ids in order with the number of captions of each."""
    digest = hashlib.sha256()
    for table in batches(dataset, ["image_id", "captions"]):
        counts = pc.list_value_length(table["captions"]).to_pylist()
        for image_id, count in zip(table["image_id"].to_pylist(), counts, strict=True):
            digest.update(f"{image_id}\0{count}\n".encode())
    return f"{len(dataset)} {digest.hexdigest()[:16]}"


def _digest_of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
