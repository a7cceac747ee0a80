"""Find similar images for every image, as hard negatives for the contrastive reward."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_distinct.data.belonging import counts_rows
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.neighbours import Neighbours
from hf_distinct.data.selections import column
from hf_distinct.data.similarity_index import TIE, SimilarityIndex, UnitRows
from hf_distinct.distributed.gathering import wait_for_first_process
from hf_distinct.distributed.nodes import local_rank, writes_for_others
from hf_distinct.files.parts import Parts, this_process

logger = logging.get_logger(__name__)

Via = Literal["images", "captions"]
Search = Literal["auto", "exact", "ivf"]
EXACT_COMPARISONS = 10**11
"""Up to this many pairs, "auto" compares all: about 15 minutes on two cores at 512 dimensions."""
PART_ROWS = 16384
MAX_FLOATS = 2**24  # numbers in candidate embeddings held at a time: 64 MB


@dataclass(frozen=True)
class MiningSettings:
    """What makes an image a neighbour; see `mine_neighbours`."""

    num_neighbours: int = 2
    first_rank: int = 1
    min_similarity: float = -1.0
    max_similarity: float = 0.999
    via: Via = "images"
    search: Search = "auto"
    min_recall: float = 0.95

    def __post_init__(self) -> None:
        """Validate the settings; raises ValueError."""
        if min(self.num_neighbours, self.first_rank) < 1 or self.min_similarity > self.max_similarity:
            raise ValueError(
                f"num_neighbours={self.num_neighbours} and first_rank={self.first_rank} should be at least 1, and "
                f"min_similarity={self.min_similarity} at most max_similarity={self.max_similarity}."
            )
        if self.via not in ("images", "captions") or self.search not in ("auto", "exact", "ivf"):
            raise ValueError(
                f"via={self.via!r} should be 'images' or 'captions', search={self.search!r} 'auto', 'exact' or 'ivf'."
            )
        if not 0 < self.min_recall <= 1:
            raise ValueError(f"min_recall={self.min_recall} should be above 0 and at most 1.")

    @property
    def depth(self) -> int:
        """The last rank taken."""
        return self.first_rank - 1 + self.num_neighbours


def mine_neighbours(
    dataset: Dataset,
    embeddings: Tensor | CaptionEmbeddings,
    num_neighbours: int = 2,
    first_rank: int = 1,
    min_similarity: float = -1.0,
    max_similarity: float = 0.999,
    **settings: Any,
) -> Dataset:
    """Add a column `neighbours`: for each image the rows of the images most similar to it, most similar first.

    Candidates for an image are all images with another image id whose cosine similarity is between the two bounds.
    They are ranked from 1, equal similarities by lower row, and the ranks `first_rank` to `first_rank + num_neighbours
    - 1` are taken. (The paper's code takes ranks 4 and 5: the nearest images may show the same thing, and negatives
      that are
    too hard make training collapse.) A summary is logged.

    With embeddings from a cache, index and neighbours are stored with them: a killed search resumes, and the result of
    a finished one is read.

    Args:
        dataset: N rows with a column `image_id`, in the order of the embeddings.
        embeddings: the output of `embed_dataset`, or image embeddings (N, dim), L2-normalised.
        num_neighbours: neighbours per image; in small datasets an image may get fewer.
        first_rank: the most similar rank taken.
        min_similarity: less similar candidates are left out.
        max_similarity: more similar candidates are left out as near duplicates.
        settings: further fields of `MiningSettings`. `via`: "images", or "captions" for the images whose reference
            captions are most similar to the image, each by its most similar caption (as in the paper's code; needs
            `CaptionEmbeddings`). `search`: "exact"; "ivf", which divides the embeddings into cells and searches the
            nearest cells; or "auto", exact up to `EXACT_COMPARISONS`. `min_recall`: fraction of the true nearest that
            "ivf" must find, measured on a sample.

    Returns:
        The dataset with the column `neighbours` (lists of int rows); an existing one is replaced.

    Raises:
        ValueError: arguments are out of range, embeddings are not normalised or do not belong to the dataset, or a
            file in the cache belongs to other embeddings.
    """
    chosen = MiningSettings(num_neighbours, first_rank, min_similarity, max_similarity, **settings)
    found = find_neighbours(dataset, embeddings, chosen)
    found.log_summary()
    return found.add_to(dataset)


def find_neighbours(dataset: Dataset, embeddings: Tensor | CaptionEmbeddings, settings: MiningSettings) -> Neighbours:
    """Return the neighbours for `mine_neighbours`, with their similarities and statistics."""
    image_embeds = embeddings.image_embeds if isinstance(embeddings, CaptionEmbeddings) else embeddings
    _check(dataset, image_embeds)
    if settings.via == "captions" and not isinstance(embeddings, CaptionEmbeddings):
        raise ValueError("via='captions' needs embeddings of captions, too: pass the output of embed_dataset.")
    folder = embeddings.folder if isinstance(embeddings, CaptionEmbeddings) else None
    ids = np.fromiter(map(hash, column(dataset, "image_id")), dtype=np.int64, count=len(dataset))
    if settings.via == "captions":
        assert isinstance(embeddings, CaptionEmbeddings)
        entries, offsets = embeddings.caption_embeds, embeddings.caption_offsets.numpy()
        owners = np.repeat(np.arange(len(ids)), np.diff(offsets))
    else:
        entries, owners = image_embeds, np.arange(len(ids))
    return _Search(ids, UnitRows(image_embeds), entries, owners, settings, folder).run()


class _Search:
    """One search: N images with ids (N,) query E entries (E, dim), each of which belongs to a row, its owner."""

    def __init__(
        self,
        ids: np.ndarray,
        queries: UnitRows,
        entries: Tensor,
        owners: np.ndarray,
        settings: MiningSettings,
        folder: Path | None,
    ) -> None:
        self.ids, self.queries, self.owners, self.settings, self.folder = ids, queries, owners, settings, folder
        kind = settings.search
        if kind == "auto":
            kind = "exact" if len(ids) * len(entries) <= EXACT_COMPARISONS else "ivf"
        own = np.arange(len(ids)) if settings.via == "images" else None
        self.index = SimilarityIndex(entries, kind, settings.depth, settings.min_recall, queries, own)
        self.parts = [range(i, min(i + PART_ROWS, len(ids))) for i in range(0, len(ids), PART_ROWS)]

    def run(self) -> Neighbours:
        """Find all neighbours, or read those found before."""
        if self.folder is None:
            self.index.build()
            return Neighbours.join([self._search(rows) for rows in self._with_progress(self.parts)])
        key = json.dumps([asdict(self.settings), PART_ROWS]).encode()
        name = f"neighbours-{hashlib.blake2b(key, digest_size=8).hexdigest()}"
        path, parts = self.folder / f"{name}.safetensors", Parts(self.folder / f"{name}.parts", len(self.parts))
        searches = writes_for_others(self.folder)  # one process is enough, since faiss uses all cores
        while (found := self._read(path)) is None:
            if searches:
                self._run_in_parts(parts, path)
            else:
                wait_for_first_process(path.is_file)
        if parts.folder.is_dir():  # of a slower run, or of one killed between its last two moves
            parts.remove()
        return found

    def _read(self, path: Path) -> Neighbours | None:
        """Return the neighbours found before; None if there are none, or they are incomplete."""
        assert self.folder is not None
        try:
            return Neighbours.load(path, self.folder.name)
        except FileNotFoundError:
            return None
        except ValueError as error:
            if local_rank() == 0:
                logger.warning(f"The cached neighbours are unusable and are mined again: {error}")
                path.unlink(missing_ok=True)
            return None

    def _run_in_parts(self, parts: Parts, path: Path) -> None:
        """Search the missing parts and join all parts; if a faster run has already done it, use its files."""
        assert self.folder is not None
        try:
            if missing := parts.missing():
                self.index.open(self.folder / f"index-{self.settings.via}-{self.index.kind}.faiss", parts.folder)
            for number in self._with_progress(missing):
                parts.write(number, *self._search(self.parts[number]).to_tensors())
            try:
                found = [Neighbours.from_tensors(*parts.read(number)) for number in range(parts.count)]
            except ValueError as error:  # the broken part has been removed
                logger.warning(f"A part of the neighbours is mined again: {error}")
                return
            Neighbours.join(found).save(path, parts.folder)
        except FileNotFoundError:
            if not path.is_file():
                logger.warning(f"{str(parts.folder)!r} was removed during the search, which continues.")

    def _with_progress(self, steps: Any) -> Any:
        hidden = len(steps) < 2 or this_process()[0] != 0 or not logging.is_progress_bar_enabled()
        return tqdm(steps, desc=f"Mining, {PART_ROWS} images at a time", disable=hidden)

    def _search(self, part: range) -> Neighbours:
        """Return the neighbours of consecutive rows."""
        depth, per_image = self.settings.depth, -(-len(self.owners) // len(self.ids))
        found = Neighbours(
            rows=np.full((len(part), depth), -1, dtype=np.int64),
            similarities=np.full((len(part), depth), np.nan, dtype=np.float32),
            rejected=np.zeros((len(part), 3), dtype=bool),
            first_rank=self.settings.first_rank,
            searched={**asdict(self.settings), **asdict(self.index.search_kind)},
            embeddings="" if self.folder is None else self.folder.name,
        )
        # In addition to those wanted: the image itself, and one more to detect a tie for the last rank.
        count = min((depth + 1) * per_image + 1, len(self.owners))
        pending = np.arange(part.start, part.stop)
        while len(pending):
            size = max(1, MAX_FLOATS // (count * self.queries.dim))
            done = [self._take(pending[i : i + size], count, found, part.start) for i in range(0, len(pending), size)]
            pending = pending[~np.concatenate(done)]
            count = min(4 * count, len(self.owners))
        return found

    def _take(self, rows: np.ndarray, count: int, found: Neighbours, start: int) -> np.ndarray:
        """Record the neighbours of some rows from their `count` nearest entries; return where these were enough."""
        s, queries = self.settings, self.queries[rows]
        scores, entries = self.index.search(queries, count)
        # faiss rounds sums in different orders. Computed in the same way for all, equal pairs get equal similarities.
        vectors = self.index.entries[entries.clip(0).reshape(-1)].reshape(*entries.shape, -1)
        cosines = np.einsum("qcd,qd->qc", vectors, queries).clip(-1.0, 1.0)
        owners, there = self.owners[entries], entries >= 0
        same = self.ids[owners] == self.ids[rows, None]
        too_similar, too_dissimilar = cosines > s.max_similarity, cosines < s.min_similarity
        good = there & ~same & ~too_similar & ~too_dissimilar
        owners, cosines = _ranked(owners, np.where(good, cosines, -np.inf))

        taken = np.isfinite(cosines[:, : s.depth])
        wide = taken.shape[1]
        found.rows[rows - start, :wide] = np.where(taken, owners[:, : s.depth], -1)
        found.similarities[rows - start, :wide] = np.where(taken, cosines[:, : s.depth], np.nan)
        reasons = (same & (self.owners[entries] != rows[:, None]), too_similar & ~same, too_dissimilar & ~same)
        found.rejected[rows - start] = np.stack([(there & reason).any(axis=1) for reason in reasons], axis=1)

        last = scores[:, -1]  # all other entries are at most this similar
        enough = (cosines[:, s.depth - 1] > last + TIE) if wide == s.depth else np.zeros(len(rows), dtype=bool)
        exhausted = ~there[:, -1] | (count == len(self.owners))
        return enough | exhausted | (last < s.min_similarity - TIE)


def _ranked(owners: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort each row of (queries, candidates) by falling cosine, ties by owner, keeping each owner's best only."""
    for by_owner in (False, True, False):
        order = np.argsort(owners if by_owner else -cosines, axis=1, kind="stable")
        owners, cosines = np.take_along_axis(owners, order, axis=1), np.take_along_axis(cosines, order, axis=1)
        if by_owner:  # the best entry of each owner comes first
            repeated = np.zeros(owners.shape, dtype=bool)
            repeated[:, 1:] = owners[:, 1:] == owners[:, :-1]
            cosines = np.where(repeated, -np.inf, cosines)
    return owners, cosines


def _check(dataset: Dataset, image_embeds: Tensor) -> None:
    if image_embeds.ndim != 2 or len(image_embeds) != len(dataset) or not len(dataset):
        raise ValueError(f"image embeddings of shape {tuple(image_embeds.shape)} do not fit {len(dataset)} rows.")
    for start in range(0, len(image_embeds), PART_ROWS):
        norms = image_embeds[start : start + PART_ROWS].float().norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
            worst = int((norms - 1).abs().nan_to_num(nan=torch.inf).argmax())
            raise ValueError(
                f"image embeddings should have length 1, row {start + worst} has {float(norms[worst]):.4f}."
            )
    if "row" in dataset.column_names and not counts_rows(dataset):
        raise ValueError("The column 'row' is not 0, 1, 2, ...: mine on the dataset that embed_dataset returned.")
