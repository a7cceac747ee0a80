"""Check that captioner, processors, scorer, data, rewards and settings fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import TrainingArguments

from hf_distinct.data.belonging import embeddings_problems, neighbours_problems
from hf_distinct.data.collator import OWN_COLUMNS
from hf_distinct.rewards import ContrastiveReward
from hf_distinct.rewards.callable import CallableReward
from hf_distinct.training.settings import settings_problems

if TYPE_CHECKING:
    from hf_distinct.config import RLCaptionConfig
    from hf_distinct.data.caption_embeddings import CaptionEmbeddings
    from hf_distinct.rewards import Reward
    from hf_distinct.scorer import ClipScorer

LOGGED_NAMES = ("total", "discriminator")


def training_problems(
    args: RLCaptionConfig,
    *,
    train_dataset: Dataset | None,
    eval_dataset: Any,
    scorer: ClipScorer | None,
    rewards: Sequence[str | Reward] | None,
    caption_metrics: Any,
    embeddings: CaptionEmbeddings | None = None,
) -> Iterator[str]:
    """Yield problems with what RL training needs besides the captioner.

    Args:
        args: the settings.
        train_dataset: the output of `as_captioned`. Dataset, scorer and rewards are None if loading them failed.
        eval_dataset: a dataset, a dict of datasets, or None.
        scorer: the CLIP that gives the reward.
        rewards: the output of `found_rewards`.
        caption_metrics: the evaluation's metrics function, or None.
        embeddings: given embeddings of ``train_dataset``.
    """
    if train_dataset is not None:
        yield from batch_problems(train_dataset, args)
        yield from neighbours_problems(train_dataset, "train_dataset", args.pool_neighbours)
        columns = train_dataset.column_names
        yield from settings_problems(
            args, eval_dataset=eval_dataset, caption_metrics=caption_metrics, train_columns=columns
        )
        if embeddings is not None:
            yield from embeddings_problems(train_dataset, embeddings, "train_dataset", scorer)
        if rewards is not None:
            yield from reward_problems(rewards, columns, args.reward_weights)
    if rewards is not None:
        yield from contrast_problems(rewards, args)


def batch_problems(train_dataset: Sized, args: TrainingArguments) -> Iterator[str]:
    """Yield a message if there are too few rows for one batch: the Trainer would silently end at step 0."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(train_dataset) < batch:
        yield (
            f"{len(train_dataset)} training images do not fill one batch of {batch}: lower "
            "per_device_train_batch_size."
        )


def reward_problems(
    rewards: Sequence[str | Reward], columns: Sequence[str], weights: Sequence[float] | None = None
) -> Iterator[str]:
    """Yield reasons why these rewards cannot be used together, or with a dataset.

    Args:
        rewards: the output of `found_rewards`.
        columns: names of the dataset's columns.
        weights: weights of the rewards, if given.
    """
    if weights is not None and len(weights) != len(rewards):
        yield f"{len(weights)} reward_weights for {len(rewards)} rewards: set one weight per reward."
    names = Counter(reward if isinstance(reward, str) else reward.name for reward in rewards)
    for name, count in names.items():
        if count > 1:
            yield (
                f"{count} rewards have the name {name!r}, so the log could not distinguish them: name them with "
                "CallableReward(function, name)."
            )
        if name in LOGGED_NAMES:
            yield f"a reward cannot be called {name!r}: the log uses this name for another value. Rename the reward."
    for reward in rewards:
        if isinstance(reward, CallableReward):
            yield from reward.problems([name for name in columns if name not in OWN_COLUMNS])


def contrast_problems(rewards: Sequence[str | Reward], args: RLCaptionConfig) -> Iterator[str]:
    """Yield a message if a contrastive reward would have nothing to compare with.

    Args:
        rewards: the output of `found_rewards`.
        args: the settings of pools and batches.
    """
    contrasts = any(str(each).startswith("contrastive") or isinstance(each, ContrastiveReward) for each in rewards)
    images = args.per_device_train_batch_size * (args.world_size if args.pool_other_processes else 1)
    if contrasts and images < 2 and not args.pool_neighbours and not args.memory_batches:
        yield (
            "A contrastive reward needs other images to compare with, but the batch has one image: raise "
            "per_device_train_batch_size, or set pool_neighbours or memory_batches."
        )
