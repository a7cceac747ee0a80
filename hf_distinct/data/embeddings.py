"""Compute CLIP embeddings of a dataset's images and captions, or read them from a cache."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset, Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_distinct.data.belonging import neighbours_problems
from hf_distinct.data.images import decode_images, warn_of_losses
from hf_distinct.data.prepared import as_captioned, select
from hf_distinct.data.selections import with_column
from hf_distinct.data.skips import Skips
from hf_distinct.data.workers import TRIAL, fitting_workers, share
from hf_distinct.distributed.nodes import parts_to_compute, wait_for_parts, writes_for_others
from hf_distinct.files.parts import this_process

if TYPE_CHECKING:
    from hf_distinct.scorer import ClipScorer
from hf_distinct.data.caption_embeddings import CaptionEmbeddings, EmbeddedRows

AHEAD = 4  # batches that each worker decodes ahead

logger = logging.get_logger(__name__)

TEXT_BATCH_SIZE = 256

PART_ROWS = {torch.float16: 512, torch.float32: 8192}
"""Rows per part of the cache; a killed run loses at most one part. Rounding depends on the other rows of a part."""


def embed_dataset(
    dataset: Dataset,
    scorer: ClipScorer,
    cache_dir: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    strict: bool = False,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float16,
) -> tuple[Dataset, CaptionEmbeddings]:
    """Embed every image and caption of a dataset with CLIP, or read the embeddings from a cache.

    Rows whose image cannot be decoded are dropped and named in one warning; another one names images that lose
    information in RGB (see `hf_distinct.data.images.to_rgb`).

    With `cache_dir` the work is done in parts, each of which is saved, so that a killed run can resume. At the end the
    parts become one folder of memory-mapped arrays. The cache is identified by its inputs: the captions, the image
    ids, size and time of modification of every image file (or the content of images stored in the dataset), and the
    scorer's weights, architecture and transform. Processes of torch.distributed that call this together share the
    work; independent runs may use the same cache.

    Args:
        dataset: columns `image`, `captions` and `image_id`, in any form that
            `hf_distinct.data.prepared.as_captioned` accepts.
        scorer: the CLIP model.
        cache_dir: folder of the cache, created if needed; None for no cache. Each node may have one on its own disk.
        batch_size: images per call of the scorer.
        strict: raise an error for an image that cannot be decoded.
        num_workers: processes that decode images in the background; 0 decodes them in this process.
        dtype: type of the cached embeddings, float16 or float32. With float32 they are the same as without a cache, to
            the bit, for up to 8,192 images.

    Returns:
        The dataset without dropped rows and with a new int column `row` (0 to N - 1, the index of its embeddings),
        and the embeddings.

    Raises:
        ValueError: the dataset is not accepted by `as_captioned`, no image can be decoded, the scorer's embeddings are
            not finite, or (strict) a caption is empty or an image cannot be decoded.
    """
    dataset = as_captioned(dataset, "dataset", strict=strict)
    for problem in neighbours_problems(dataset, "dataset"):  # before rows get new numbers
        raise ValueError(problem)
    embedder = _Embedder(dataset, scorer, batch_size, strict, num_workers)
    if cache_dir is None:
        with _progress(len(dataset)) as bar:
            (rows,) = embedder.embed([range(len(dataset))], bar)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), rows.caption_counts.cumsum(0)])
        embeddings, failures = CaptionEmbeddings(rows.image_embeds, rows.caption_embeds, offsets), rows.failures
        losses = rows.losses
    else:
        embeddings, failures, losses = _through_cache(embedder, Path(cache_dir), dtype)

    skips = Skips("embed_dataset", strict)
    image_ids = list(dataset["image_id"]) if failures or losses else []
    for row, reason in sorted(failures.items()):
        skips.add("undecodable image", f"{image_ids[row]}: {reason}")
    if len(failures) == len(dataset):
        raise ValueError(f"None of the {len(dataset)} images can be decoded: {skips.summary()}")
    skips.warn()
    warn_of_losses("embed_dataset", ((image_ids[row], lost) for row, lost in sorted(losses.items())))

    if failures:
        dataset = select(dataset, np.delete(np.arange(len(dataset)), list(failures)), "dataset")
    return with_column(dataset, "row", np.arange(len(dataset))), embeddings


def _through_cache(
    embedder: _Embedder, cache_dir: Path, dtype: torch.dtype
) -> tuple[CaptionEmbeddings, dict[int, str], dict[int, str]]:
    """Compute missing parts, shared with all other processes and runs, until the cache is complete."""
    from hf_distinct.data.embedding_cache import EmbeddingCache

    cache = EmbeddingCache(cache_dir, embedder.dataset, embedder.scorer, PART_ROWS[dtype], dtype)
    if not cache.is_whole():
        cache.check_room(embedder.dataset)
    parts, joins = cache.parts, writes_for_others(cache_dir)
    begin, embedded = time.monotonic(), 0
    mine = -(-len(embedder.dataset) // this_process()[1])
    with _progress(mine, max(0, mine - sum(len(cache.rows_of(number)) for number in parts.missing()))) as bar:
        while (found := cache.read()) is None:
            if numbers := parts_to_compute(parts):
                rows = [cache.rows_of(number) for number in numbers]
                for part in embedder.embed(rows, bar, lambda: parts.claim(numbers)):
                    cache.write_part(number := numbers.pop(0), part)
                    embedded += len(cache.rows_of(number))
                    if cache.is_whole():  # another run was faster
                        break
            elif joins and not parts.missing():
                cache.merge()
            elif joins:
                wait_for_parts(parts, lambda: cache.is_whole() or not parts.missing())
            else:
                wait_for_parts(parts, cache.is_whole)
    if embedded:
        seconds = time.monotonic() - begin
        logger.info(
            f"Embedded {embedded} images in {seconds:.0f} s, {embedded / seconds:.1f} per second, into {cache_dir}."
        )
    return found


def _progress(total: int, done: int = 0) -> tqdm:
    """Return a progress bar in images, which only process 0 shows."""
    hidden = this_process()[0] != 0 or not logging.is_progress_bar_enabled()
    return tqdm(total=total, initial=done, desc="Embedding images", unit=" images", disable=hidden)


class _Embedder:
    """Embeds ranges of rows, decoding images in advance."""

    def __init__(self, dataset: Dataset, scorer: ClipScorer, batch_size: int, strict: bool, num_workers: int) -> None:
        self.dataset, self.scorer = dataset, scorer
        self.batch_size, self.strict, self.num_workers = batch_size, strict, num_workers

    def embed(
        self, ranges: Sequence[range], bar: tqdm, at_work: Callable[[], None] = lambda: None
    ) -> Iterator[EmbeddedRows]:
        """Yield the embeddings of each range; in between, show the progress and call `at_work` again and again."""
        # A batch never spans two ranges, so a range's embeddings are bit-identical whatever else is computed.
        batches = [each[i : i + self.batch_size] for each in ranges for i in range(0, len(each), self.batch_size)]
        decoded, workers = _DecodedBatches(self.dataset, self.scorer.transform), min(self.num_workers, len(batches))
        if workers:
            workers = fitting_workers(workers, self.batch_size * self.scorer.transform(TRIAL).nbytes, AHEAD)
        loader = DataLoader(
            decoded,
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=self.scorer.device.type == "cuda",
            generator=torch.Generator(),  # otherwise it would draw from the global one
        )
        loaded = iter(loader)
        for rows in ranges:
            embeds = [torch.empty(0, self.scorer.embed_dim)]
            failures: dict[int, str] = {}
            losses: dict[int, str] = {}
            for start in range(0, len(rows), self.batch_size):
                at_work()
                pixel_values, failed, lossy = next(loaded)
                if pixel_values is not None:
                    embeds.append(self.scorer.encode_images(pixel_values).float().cpu())
                failures |= failed
                losses |= lossy
                if failed and self.strict:
                    row, reason = next(iter(failed.items()))
                    name = self.dataset.select_columns(["image_id"])[row]["image_id"]
                    Skips("embed_dataset", strict=True).add("undecodable image", f"{name}: {reason}")
                bar.update(min(self.batch_size, len(rows) - start))
            kept = [row for row in rows if row not in failures]
            caption_embeds, counts = self._embed_captions(rows, kept, at_work)
            yield self._checked(EmbeddedRows(torch.cat(embeds), caption_embeds, counts, failures, losses))

    def _embed_captions(self, rows: range, kept: list[int], at_work: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the kept rows' captions, computing each distinct text once, and their counts."""
        columns = self.dataset.select_columns(["captions"]).with_format(None)[rows.start : rows.stop]
        captions = [columns["captions"][row - rows.start] for row in kept]
        texts = [text for row in captions for text in row]
        place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        distinct = list(place)
        embeds = [torch.empty(0, self.scorer.embed_dim)]
        for start in range(0, len(distinct), TEXT_BATCH_SIZE):
            at_work()
            embeds.append(self.scorer.encode_texts(distinct[start : start + TEXT_BATCH_SIZE]).float().cpu())
        order = torch.tensor([place[text] for text in texts], dtype=torch.int64)
        return torch.cat(embeds)[order], torch.tensor([len(row) for row in captions], dtype=torch.int64)

    def _checked(self, rows: EmbeddedRows) -> EmbeddedRows:
        if not all(bool(torch.isfinite(each).all()) for each in (rows.image_embeds, rows.caption_embeds)):
            raise ValueError(f"The scorer {self.scorer.name} returns embeddings with NaN or infinity.")
        return rows


class _DecodedBatches(torch.utils.data.Dataset):
    """Ranges of rows as pixels (rows, 3, height, width); by row, reasons why there are none, and losses in RGB."""

    def __init__(self, dataset: Dataset, transform: Any) -> None:
        # decode=False: otherwise datasets would fail on the whole batch, without the name of the broken image.
        self.encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False)).with_format(None)
        self.transform = transform

    def __getitem__(self, rows: range) -> tuple[Tensor | None, dict[int, str], dict[int, str]]:
        found = decode_images(self.encoded[rows.start : rows.stop]["image"], self.transform)
        pixel_values = torch.stack(found.images) if found.images else None
        failures, losses = (
            {rows.start + place: reason for place, reason in each.items()} for each in (found.failures, found.losses)
        )
        share([pixel_values])
        return pixel_values, failures, losses
