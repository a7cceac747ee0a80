"""Collate rows of a dataset into the tensors of one training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_distinct.data.augmentation import Augmentation
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.encoded_images import EncodedImages
from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.images import ImageError, decode_image, to_pixel_values
from hf_distinct.data.workers import share

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
OWN_COLUMNS = ("image", "captions", "row", "neighbours")


class SharedEpoch:
    """An attribute of type `int | None` whose changes are visible in worker processes.

    Persistent DataLoader workers (`persistent_workers`) have a copy of the collator, so the value is in shared memory.
    """

    def __get__(self, owner: Any, kind: Any = None) -> int | None:
        if owner is None:  # the dataclass decorator reads the default
            return None
        epoch = int(owner._epoch)
        return None if epoch < 0 else epoch

    def __set__(self, owner: Any, epoch: int | None) -> None:
        shared = owner.__dict__.setdefault("_epoch", torch.zeros((), dtype=torch.int64).share_memory_())
        shared.fill_(-1 if epoch is None else epoch)


def decoded(
    rows: list[dict[str, Any]], prepare: Callable[[dict[str, Any]], Tensor]
) -> tuple[list[dict[str, Any]], Tensor]:
    """Return the rows whose images can be decoded, and their tensors.

    Unreadable images were removed before training. One that fails here has become unreadable since. It must not end a
    long training, or stop it at the same step whenever it is resumed.

    Args:
        rows: with `image` and `image_id`.
        prepare: turns a row into the model's input; raises ImageError if its image cannot be decoded.

    Raises:
        ValueError: no image can be decoded.
    """
    kept: list[dict[str, Any]] = []
    pixels: list[Tensor] = []
    for row in rows:
        try:
            pixels.append(prepare(row))
            kept.append(row)
        except ImageError as error:
            reason = f"Image {row['image_id']!r}: {error}"
            logger.warning("%s. It is left out of its batch.", reason)
    if not pixels:
        raise ValueError(f"No image of a batch of {len(rows)} can be decoded. {reason}")
    return kept, torch.stack(pixels)


@dataclass
class CaptionCollator:
    """Creates a batch of B rows: pixels, G reference captions per image as labels, and inputs of the rewards.

    The batch contains `pixel_values` (B, 3, H, W) float32, or with `encoded` the encoder's outputs (B, S, width)
    instead; `labels` (B, G, L) int64, each caption truncated to `max_length` with one end token, padded with -100;
    `captions`, B lists of the G texts drawn; `references`, B lists of all captions; `image_ids` (B,) int64, hashed;
    `columns`, the other columns of the rows as lists, including `image_id`. With `embeddings` also `image_embeds`
    (B, dim), `caption_embeds` (B, G, dim), and for the M mined neighbours (the maximum in this batch, possibly 0)
    `neighbour_embeds` (B, M, dim), `neighbour_ids` (B, M) int64 and `neighbour_mask` (B, M) bool, False where an image
    has fewer.

    The G captions are drawn without replacement; an image with fewer than G captions repeats them until there are G.
    While `epoch` is None, torch's global generator is used. A Trainer fetches batches ahead of the step and restores
    the generators after the first fetch, so a run resumed within an epoch would draw other captions. To prevent this,
    set `epoch` at the beginning of each epoch: the draw then depends on (`seed`, `epoch`, image id) only.

    Attributes:
        tokenizer: the captioner's; it must have an end token.
        image_processor: the captioner's.
        embeddings: from `embed_dataset`; rows then need the column `row`.
        image_ids: with `embeddings`: the image ids of the whole training split by row.
        captions_per_image: G.
        max_length: maximum number of tokens per caption, end token included.
        seed: seed of the draw, while `epoch` is set.
        epoch: the current epoch, or None; worker processes see it change.
        augmentation: creates a view of each image that depends on (`seed`, `epoch`, image id).
        encoded: the outputs of a frozen encoder, used instead of pixels.

    Raises:
        ValueError: at creation: settings that conflict. When called: a row lacks a column, has no caption or does not
            belong to the embeddings, or no image of the batch can be decoded. A single unreadable image is left out of
            its batch, with a warning that names it.
    """

    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor
    embeddings: CaptionEmbeddings | None = None
    image_ids: InitVar[Iterable[str]] = ()
    captions_per_image: int = 1
    max_length: int = 32
    seed: int = 0
    epoch: SharedEpoch = SharedEpoch()
    augmentation: Augmentation | None = None
    encoded: EncodedImages | None = None
    _hashed_ids: Tensor = field(init=False, repr=False)

    def __post_init__(self, image_ids: Iterable[str]) -> None:
        """Check the settings and hash the image ids."""
        if self.tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no end token (eos_token): captions could never end. Set one.")
        if self.captions_per_image < 1 or self.max_length < 2:
            raise ValueError(
                f"captions_per_image={self.captions_per_image} should be at least 1, and max_length={self.max_length} "
                "at least 2 (one word and the end token)."
            )
        self._hashed_ids = torch.from_numpy(np.fromiter(map(stable_hash, image_ids), dtype=np.int64))
        if self.embeddings is not None and len(self._hashed_ids) != len(self.embeddings):
            raise ValueError(f"{len(self._hashed_ids)} image_ids do not fit {len(self.embeddings)} embedded images.")

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows (one dict per row) into the batch described above."""
        for row in rows:
            self._check(row)
        rows, pixel_values = decoded(rows, self._pixels)
        drawn = [self._draw(row) for row in rows]
        captions = [[row["captions"][place] for place in places] for row, places in zip(rows, drawn, strict=True)]
        batch: dict[str, Any] = {
            "pixel_values": pixel_values,
            "labels": self._labels(captions),
            "captions": captions,
            "references": [list(row["captions"]) for row in rows],
            "image_ids": torch.tensor([stable_hash(row["image_id"]) for row in rows], dtype=torch.int64),
            "columns": {name: [row[name] for row in rows] for name in rows[0] if name not in OWN_COLUMNS},
        }
        if self.embeddings is not None:
            batch |= self._embeds(self.embeddings, rows, drawn)
        share(value for value in batch.values() if isinstance(value, Tensor))
        return batch

    def _check(self, row: dict[str, Any]) -> None:
        needed = {"image", "captions", "image_id"} | ({"row"} if self.embeddings is not None else set())
        if needed - set(row):
            raise ValueError(
                f"A row lacks {sorted(needed - set(row))} (it has {sorted(row)}). The Trainer removes columns that "
                "the model does not use: set remove_unused_columns=False."
            )
        image_id, num_captions = row["image_id"], len(row["captions"])
        if not num_captions:
            raise ValueError(f"Image {image_id!r} has no captions.")
        if self.embeddings is None:
            return
        place = row["row"]
        if not 0 <= place < len(self.embeddings) or self._hashed_ids[place] != stable_hash(image_id):
            raise ValueError(
                f"Row {place} of the embeddings is not image {image_id!r}: they belong to another dataset."
            )
        begin, end = self.embeddings.caption_offsets[place : place + 2].tolist()
        if end - begin != num_captions:
            raise ValueError(
                f"Image {image_id!r} has {num_captions} captions, but its embeddings have another number: "
                "embed the dataset again."
            )

    def _draw(self, row: dict[str, Any]) -> list[int]:
        """Draw G of the row's captions and return their indices."""
        generator = None
        if self.epoch is not None:
            generator = torch.Generator().manual_seed(stable_hash(f"{self.seed}:{self.epoch}:{row['image_id']}"))
        places: list[int] = []
        while len(places) < self.captions_per_image:
            places += torch.randperm(len(row["captions"]), generator=generator).tolist()
        return places[: self.captions_per_image]

    def _pixels(self, row: dict[str, Any]) -> Tensor:
        """Preprocess a row's image: `(3, H, W)`, or the encoder's output `(S, width)` if it is already encoded."""
        if self.encoded is not None:
            return self.encoded(row["image_id"])
        image = decode_image(row["image"])
        if self.augmentation is not None:
            image = self.augmentation(image, f"{self.seed}:{self.epoch}:{row['image_id']}")
        return to_pixel_values([image], self.image_processor)[0]

    def _labels(self, captions: list[list[str]]) -> Tensor:
        """Return token ids (B, G, L), padded with -100."""
        end = self.tokenizer.eos_token_id
        texts = [text for row in captions for text in row]
        encoded = self.tokenizer(texts, add_special_tokens=False, truncation=True, max_length=self.max_length - 1)
        # A caption may contain the text of the end token, at which generation would stop.
        tokens = [torch.tensor([token for token in ids if token != end] + [end]) for ids in encoded["input_ids"]]
        padded = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=IGNORED_LABEL)
        return padded.view(len(captions), self.captions_per_image, -1)

    def _embeds(
        self, embeddings: CaptionEmbeddings, rows: list[dict[str, Any]], drawn: list[list[int]]
    ) -> dict[str, Tensor]:
        places = torch.tensor([row["row"] for row in rows])
        caption_places = embeddings.caption_offsets[places, None] + torch.tensor(drawn)
        neighbours = [torch.tensor(row.get("neighbours") or [], dtype=torch.int64) for row in rows]
        # Row -1 is padding: its embeddings are replaced by zeros through the mask.
        padded = torch.nn.utils.rnn.pad_sequence(neighbours, batch_first=True, padding_value=-1)
        mask = padded >= 0
        if padded.numel() and int(padded.max()) >= len(embeddings):
            raise ValueError(f"A neighbour is row {int(padded.max())}, but only {len(embeddings)} rows are embedded.")
        return {
            "image_embeds": embeddings.images(places),
            "caption_embeds": embeddings.captions(caption_places),
            "neighbour_embeds": embeddings.images(padded) * mask[..., None],
            "neighbour_ids": self._hashed_ids[padded] * mask,
            "neighbour_mask": mask,
        }
