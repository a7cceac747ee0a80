"""Whether captioner, tokenizer, image processor, scorer, data, rewards and settings fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers import TrainingArguments

from hf_distinct.data.prepared import embeddings_problems, neighbours_problems
from hf_distinct.rewards.appraiser import contrast_problems, reward_problems
from hf_distinct.training.settings import settings_problems

if TYPE_CHECKING:
    from hf_distinct.config import RLCaptionConfig
    from hf_distinct.data.caption_embeddings import CaptionEmbeddings
    from hf_distinct.rewards import Reward
    from hf_distinct.scorer import ClipScorer


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
    """What a training by reinforcement is made of beside the captioner, and does not bear out the rest.

    Args:
        args: the settings.
        train_dataset: as `as_captioned` returns it. It, scorer and rewards are None if there was a problem with them.
        eval_dataset: a dataset, a dict of them by name, or None.
        scorer: the CLIP that rewards.
        rewards: as `found_rewards` returns them.
        caption_metrics: what an evaluation computes, or None.
        embeddings: those that were given for ``train_dataset``.
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
    """Too few rows for one batch, with which the Trainer would end at step 0, in silence."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and len(train_dataset) < batch:
        yield (
            f"{len(train_dataset)} training images do not fill one batch of {batch}: lower "
            "per_device_train_batch_size."
        )
