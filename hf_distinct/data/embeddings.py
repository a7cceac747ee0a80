"""CLIP embeddings of a data set's images and captions: computed once, cached in one file."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import torch
from datasets import Dataset, Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.skips import Skips

if TYPE_CHECKING:
    from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

TEXT_BATCH_SIZE = 256


@dataclass
class CaptionEmbeddings:
    """CLIP embeddings of N images and of all C captions of theirs, L2-normalised, float32, on the CPU.

    Attributes:
        image_embeds: (N, dim).
        caption_embeds: (C, dim), the captions of row 0 first, in the order of the data set.
        caption_offsets: (N + 1,) int64; the captions of row r begin at `caption_offsets[r]` and end before
            `caption_offsets[r + 1]`.
    """

    image_embeds: Tensor
    caption_embeds: Tensor
    caption_offsets: Tensor

    def __post_init__(self) -> None:
        """Check that the shapes fit together; raises ValueError."""
        num_images, offsets = len(self.image_embeds), self.caption_offsets
        if offsets.shape != (num_images + 1,) or offsets[0] != 0 or offsets[-1] != len(self.caption_embeds):
            raise ValueError(
                f"caption_offsets of shape {tuple(offsets.shape)} do not fit {num_images} images and "
                f"{len(self.caption_embeds)} captions: expected {num_images + 1} numbers, from 0 to the last."
            )

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.image_embeds)

    def captions_of(self, row: int) -> Tensor:
        """Return the embeddings of row `row`'s captions: (its number of captions, dim)."""
        return self.caption_embeds[self.caption_offsets[row] : self.caption_offsets[row + 1]]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file, whole or not at all."""
        _write(Path(path), self._tensors(), {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CaptionEmbeddings:
        """Read what `save` wrote; raises ValueError naming the file if it is no such file."""
        return _read(Path(path))[0]

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("image_embeds", "caption_embeds", "caption_offsets")}


def embed_dataset(
    dataset: Dataset,
    scorer: ClipScorer,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    strict: bool = False,
) -> tuple[Dataset, CaptionEmbeddings]:
    """Embed every image and every caption of a data set with CLIP, each image decoded once, each distinct text once.

    Rows whose image cannot be decoded are dropped and told in one warning. With `cache_dir` the result is stored in
    one safetensors file, found again by the data set's fingerprint, the scorer's fingerprint, and size and time of
    modification of every image file; a replaced image therefore is embedded anew.

    Args:
        dataset: Columns `image` (a `datasets.Image` feature), `captions` and `image_id`.
        scorer: The CLIP model.
        cache_dir: Folder of the cache, made if needed; None computes anew.
        batch_size: Images per call of the scorer.
        strict: Whether an image that cannot be decoded is an error.

    Returns:
        The data set without dropped rows and with a new int column `row` (0 to N - 1: its place in the embeddings),
        and the embeddings.

    Raises:
        ValueError: A column is missing, no image can be decoded, the scorer gives something that is not finite, or
            (strict) an image cannot be decoded.
    """
    missing = {"image", "captions", "image_id"} - set(dataset.column_names)
    if missing or not isinstance(dataset.features["image"], Image) or not len(dataset):
        raise ValueError(
            f"embed_dataset needs rows with the columns image (a datasets.Image feature), captions and image_id; "
            f"found {len(dataset)} rows with {dataset.features}."
        )
    path = None if cache_dir is None else Path(cache_dir) / f"embeddings-{_cache_key(dataset, scorer)}.safetensors"
    cached = _read_cache(path) if path is not None else None
    failures = cached[1] if cached else {}
    image_embeds = None
    if cached is None:
        image_embeds, failures = _embed_images(dataset, scorer, batch_size)
    kept = [row for row in range(len(dataset)) if row not in failures]

    skips = Skips("embed_dataset", strict)
    image_ids = list(dataset["image_id"])
    for row, reason in failures.items():
        skips.add("undecodable image", f"{image_ids[row]}: {reason}")
    if not kept:
        raise ValueError(f"None of the {len(dataset)} images can be decoded: {skips.summary()}")
    skips.warn()

    dataset = dataset.remove_columns("row") if "row" in dataset.column_names else dataset
    # Without dropped rows there is nothing to select, and the table stays memory-mapped as it is.
    kept_dataset = dataset.select(kept) if failures else dataset
    if cached is not None:
        embeddings = cached[0]
    else:
        assert image_embeds is not None
        embeddings = CaptionEmbeddings(image_embeds, *_embed_captions(kept_dataset, scorer))
        if not all(bool(torch.isfinite(each).all()) for each in (embeddings.image_embeds, embeddings.caption_embeds)):
            raise ValueError(f"The scorer {scorer.name} gives embeddings with NaN or infinity.")
        if path is not None:
            metadata = {"failures": json.dumps({str(row): reason for row, reason in failures.items()})}
            _write(path, embeddings._tensors(), metadata)
    return kept_dataset.add_column("row", list(range(len(kept)))), embeddings


def _embed_images(dataset: Dataset, scorer: ClipScorer, batch_size: int) -> tuple[Tensor, dict[int, str]]:
    """Return the embeddings (decodable images, dim), and why the other rows failed."""
    # decode=False: datasets would fail on the whole batch, where the name of the one broken image is needed.
    encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False)).with_format(None)
    batches: list[Tensor] = []
    failures: dict[int, str] = {}
    for start in _progress(range(0, len(encoded), batch_size), "Embedding images"):
        pixel_values = []
        for offset, value in enumerate(encoded[start : start + batch_size]["image"]):
            try:
                pixel_values.append(scorer.transform(decode_image(value)))
            except ImageError as error:
                failures[start + offset] = str(error)
        if pixel_values:
            batches.append(scorer.encode_images(torch.stack(pixel_values).to(scorer.device)).float().cpu())
    return torch.cat(batches) if batches else torch.empty(0, scorer.embed_dim), failures


def _embed_captions(dataset: Dataset, scorer: ClipScorer) -> tuple[Tensor, Tensor]:
    """Return caption_embeds (C, dim) and caption_offsets (N + 1,)."""
    captions = dataset.select_columns(["captions"]).with_format(None)[:]["captions"]
    lengths = torch.tensor([0] + [len(row) for row in captions], dtype=torch.int64)
    texts = [text for row in captions for text in row]
    place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    distinct = list(place)
    batches = [
        scorer.encode_texts(distinct[start : start + TEXT_BATCH_SIZE]).float().cpu()
        for start in _progress(range(0, len(distinct), TEXT_BATCH_SIZE), "Embedding captions")
    ]
    embeds = torch.cat(batches) if batches else torch.empty(0, scorer.embed_dim)
    return embeds[torch.tensor([place[text] for text in texts], dtype=torch.int64)], lengths.cumsum(0)


def _progress(steps: range, description: str) -> Iterator[int]:
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return iter(tqdm(steps, desc=description, disable=rank != 0 or not logging.is_progress_bar_enabled()))


def _cache_key(dataset: Dataset, scorer: ClipScorer) -> str:
    digest = hashlib.blake2b(f"{dataset._fingerprint}\n{scorer.fingerprint}\n".encode(), digest_size=16)
    # The fingerprint covers the images' paths, not what lies there. As Arrow, embedded bytes are not copied.
    for table in dataset.select_columns(["image"]).with_format("arrow").iter(batch_size=1000):
        images = table["image"].combine_chunks()
        embedded = pc.struct_field(images, "bytes").is_valid().to_pylist()
        for path, has_bytes in zip(pc.struct_field(images, "path").to_pylist(), embedded, strict=True):
            if path is not None and not has_bytes and os.path.exists(path):
                state = os.stat(path)
                digest.update(f"{path}\n{state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
            else:
                digest.update(b"-\n")
    return digest.hexdigest()


def _read_cache(path: Path) -> tuple[CaptionEmbeddings, dict[int, str]] | None:
    if not path.is_file():
        return None
    try:
        embeddings, metadata = _read(path)
        return embeddings, {int(row): reason for row, reason in json.loads(metadata["failures"]).items()}
    except (ValueError, KeyError) as error:
        logger.warning(f"The cached embeddings are unusable and are computed anew: {error}")
        return None


def _read(path: Path) -> tuple[CaptionEmbeddings, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = ("image_embeds", "caption_embeds", "caption_offsets")
            return CaptionEmbeddings(*(file.get_tensor(name) for name in names)), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} holds no caption embeddings: {error}") from error


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # Written beside and moved: a killed run leaves no half file, and two processes that write the same do no harm.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
