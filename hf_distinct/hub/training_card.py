"""Write a model card from the state of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distinct.config import RLCaptionConfig
from hf_distinct.families import gives_maps
from hf_distinct.hub.model_card import write_model_card
from hf_distinct.reporting.reward_formula import describe_reward
from hf_distinct.rewards.appraiser import Appraiser
from hf_distinct.scorer import ClipScorer
from hf_distinct.text.portable import portable

LOADING_MAPS = """from hf_distinct import pipeline  # transformers' own cannot read the encoder's feature maps

captioner = pipeline("image-to-text", model="...")  # the id of this repository, or a local folder
"""


def scorer_id(scorer: ClipScorer) -> str:
    """Return a scorer's public name and its fingerprint, as cards and discriminators record it."""
    return f"{portable(scorer.name)} (fingerprint {scorer.fingerprint})"


def write_training_card(
    folder: str | Path,
    args: RLCaptionConfig,
    appraiser: Appraiser,
    dataset: Dataset,
    captioner: Any,
    *,
    log_history: Sequence[Mapping[str, Any]],
    alarms: Sequence[str],
    **facts: Any,
) -> Path:
    """Write the card of the training so far.

    Args:
        folder: the folder to write to.
        args: the settings.
        appraiser: has the rewards.
        dataset: the training dataset.
        captioner: the captioner, with or without adapters.
        log_history: the Trainer's log.
        alarms: alarms so far.
        facts: further arguments of [`hf_distinct.hub.model_card.write_model_card`]; they override the above.

    Returns:
        The path of the card.
    """
    names = [reward.name for reward in appraiser.rewards]
    rewards = dict(zip(names, appraiser.reward_weights, strict=True))
    documented = {reward.name: reward.__doc__ for reward in appraiser.rewards}
    clip = scorer_id(appraiser.scorer)
    known: dict[str, Any] = {
        "model_name": (args.hub_model_id or Path(str(args.output_dir)).absolute().name).split("/")[-1],
        "data": dataset.info.dataset_name or "captioned images",
        "data_license": dataset.info.license or None,
        "scorer": clip,
        "reward": describe_reward(rewards, appraiser.baseline, clip, args, documented),
        "base_model": captioner.config._name_or_path or None,
        "model_type": captioner.config.model_type,
        "loading": LOADING_MAPS if gives_maps(captioner) else None,
        "settings": args.changed,
        "log_history": log_history,
        "alarms": alarms,
    }
    return write_model_card(folder, **known | facts)
