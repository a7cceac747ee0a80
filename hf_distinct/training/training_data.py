"""The rows that a trainer with rewards draws from: their embeddings, their similar images, and their order."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, Image
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_distinct.captioner import without_adapters
from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.encoded_images import EncodedImages, encode_images
from hf_distinct.data.hard_batches import HardBatchSampler
from hf_distinct.data.mining import mine_neighbours
from hf_distinct.distributed.zero3 import gathered
from hf_distinct.inference.captioner_fit import decoder_positions
from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

HARD_BATCH_NEIGHBOURS = 4


def embedded_and_mined(
    dataset: Dataset, embeddings: CaptionEmbeddings | None, scorer: ClipScorer, args: RLCaptionConfig
) -> tuple[Dataset, CaptionEmbeddings]:
    """Give each row what the settings need: its embeddings under the scorer, and its similar images.

    Args:
        dataset: as `hf_distinct.data.prepared.as_captioned` returns it.
        embeddings: of the dataset, if they are at hand and `check_fit` has seen them; computed otherwise.
        scorer: the CLIP that embeds.
        args: the settings.

    Returns:
        The dataset, with ``neighbours`` where the settings use them and with pictures that are not decoded; and its
        embeddings.
    """
    used, given = args.pool_neighbours or args.hard_batches, "neighbours" in dataset.column_names
    if given and not used:
        logger.warning(
            "The column 'neighbours' of train_dataset is not used. To use it, set pool_neighbours or hard_batches."
        )
    if embeddings is None:
        dataset, embeddings = embed_dataset(dataset, scorer)
    # The collator decodes: it knows the name of a picture that went bad, and refuses bombs.
    dataset = dataset.cast_column("image", Image(decode=False))
    if used and not given:
        count = args.pool_neighbours or HARD_BATCH_NEIGHBOURS
        dataset = mine_neighbours(dataset, embeddings, count, first_rank=args.neighbour_first_rank)
    return dataset, embeddings


def encoded_once(
    dataset: Dataset, model: Any, image_processor: BaseImageProcessor, folder: str | None, device: torch.device
) -> EncodedImages | None:
    """The outputs of a frozen encoder for all pictures of a dataset; None without a folder to keep them in."""
    if not folder:
        return None
    with gathered(model):
        return encode_images(dataset, without_adapters(model).encoder, image_processor, folder, device)


def collator_of(
    dataset: Dataset,
    embeddings: CaptionEmbeddings,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    args: RLCaptionConfig,
) -> CaptionCollator:
    """What makes batches of a dataset that `embedded_and_mined` gave, for a captioner and its processors."""
    collator = CaptionCollator(
        tokenizer,
        image_processor,
        embeddings=embeddings,
        image_ids=list(dataset["image_id"]),
        captions_per_image=args.references_per_image,
        max_length=min(args.max_reference_length, decoder_positions(model)),
        seed=seed_of_data(args),
        epoch=0,
    )
    collator.encoded = encoded_once(dataset, model, image_processor, args.encoder_cache, args.device)
    return collator


def hard_batch_sampler(dataset: Dataset, args: RLCaptionConfig) -> HardBatchSampler | None:
    """The order of the rows if ``args.hard_batches`` is set; else None, and the Trainer shuffles."""
    if not args.hard_batches:
        return None
    return HardBatchSampler(dataset["neighbours"], args.train_batch_size * args.world_size, seed_of_data(args))


def seed_of_data(args: TrainingArguments) -> int:
    """``data_seed``, or ``seed`` if there is none."""
    return args.seed if args.data_seed is None else args.data_seed


class EpochCallback(TrainerCallback):
    """Sets the epoch of what draws, so that its draw depends on nothing else and a resumed run draws the same.

    Args:
        drawing: collators and samplers, each with an attribute ``epoch``; None is skipped.
    """

    def __init__(self, *drawing: Any) -> None:
        self.drawing = [each for each in drawing if each is not None]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set it."""
        for each in self.drawing:
            each.epoch = int(state.epoch or 0)
