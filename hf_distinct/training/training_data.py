"""The training rows of the RL trainer: their embeddings, their similar images, and their order."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.arrow_files import cache_root
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.encoded_images import EncodedImages, encode_images
from hf_distinct.data.hard_batches import HardBatchSampler
from hf_distinct.data.mining import mine_neighbours
from hf_distinct.data.selections import column
from hf_distinct.distributed.zero3 import gathered
from hf_distinct.families import family_of
from hf_distinct.inference.captioner_fit import decoder_positions
from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

HARD_BATCH_NEIGHBOURS = 4


def embedded_and_mined(
    dataset: Dataset, embeddings: CaptionEmbeddings | None, scorer: ClipScorer, args: RLCaptionConfig
) -> tuple[Dataset, CaptionEmbeddings]:
    """Add the embeddings and similar images that the settings need.

    Args:
        dataset: the output of `hf_distinct.data.prepared.as_captioned`.
        embeddings: embeddings of the dataset that passed `check_fit`; None to compute them.
        scorer: the CLIP that embeds.
        args: the settings.

    Returns:
        The dataset, with ``neighbours`` if the settings use them and with images that are not decoded; and its
        embeddings.
    """
    used, given = args.pool_neighbours or args.hard_batches, "neighbours" in dataset.column_names
    if given and not used:
        logger.warning(
            "The column 'neighbours' of train_dataset is not used. To use it, set pool_neighbours or hard_batches."
        )
    if embeddings is None:
        dataset, embeddings = embed_once(dataset, scorer, num_workers=args.dataloader_num_workers)
    # The collator decodes images: it names unreadable ones, and rejects decompression bombs.
    dataset = dataset.cast_column("image", Image(decode=False))
    if used and not given:
        count = args.pool_neighbours or HARD_BATCH_NEIGHBOURS
        dataset = mine_neighbours(dataset, embeddings, count, first_rank=args.neighbour_first_rank)
    return dataset, embeddings


def embed_once(
    dataset: Dataset, scorer: ClipScorer, strict: bool = False, num_workers: int = 0
) -> tuple[Dataset, CaptionEmbeddings]:
    """Embed a dataset with the processes of a run together, in the cache of `datasets`, where later runs find it.

    Args:
        dataset: columns `image`, `captions` and `image_id`.
        scorer: the CLIP that embeds, on this process's device.
        strict: raise an error for an image that cannot be decoded.
        num_workers: processes that decode images, for each process of the run.

    Returns:
        See `hf_distinct.data.embed_dataset`.
    """
    return embed_dataset(dataset, scorer, cache_root(), strict=strict, num_workers=num_workers, dtype=torch.float32)


def encoded_once(
    dataset: Dataset, model: Any, image_processor: BaseImageProcessor, folder: str | None, device: torch.device
) -> EncodedImages | None:
    """Return a frozen encoder's outputs for all images of a dataset; None without a folder to store them."""
    if not folder:
        return None
    with gathered(model):
        return encode_images(dataset, family_of(model).encoder, image_processor, folder, device)


def collator_of(
    dataset: Dataset,
    embeddings: CaptionEmbeddings,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    args: RLCaptionConfig,
) -> CaptionCollator:
    """Return the collator for the output of `embedded_and_mined`, a captioner and its processors."""
    collator = CaptionCollator(
        tokenizer,
        image_processor,
        embeddings=embeddings,
        image_ids=column(dataset, "image_id"),
        captions_per_image=args.references_per_image,
        max_length=min(args.max_reference_length, decoder_positions(model)),
        seed=seed_of_data(args),
        epoch=0,
    )
    collator.encoded = encoded_once(dataset, model, image_processor, args.encoder_cache, args.device)
    return collator


def hard_batch_sampler(dataset: Dataset, args: RLCaptionConfig) -> HardBatchSampler | None:
    """Return the sampler if ``args.hard_batches`` is set; otherwise None, and the Trainer shuffles."""
    if not args.hard_batches:
        return None
    return HardBatchSampler(dataset["neighbours"], args.train_batch_size * args.world_size, seed_of_data(args))


def seed_of_data(args: TrainingArguments) -> int:
    """Return ``data_seed``, or ``seed`` if there is none."""
    return args.seed if args.data_seed is None else args.data_seed


class EpochCallback(TrainerCallback):
    """Sets the epoch of collators and samplers, so that a resumed run draws the same.

    Args:
        drawing: collators and samplers, each with an attribute ``epoch``; None is skipped.
    """

    def __init__(self, *drawing: Any) -> None:
        self.drawing = [each for each in drawing if each is not None]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the epoch."""
        for each in self.drawing:
            each.epoch = int(state.epoch or 0)
