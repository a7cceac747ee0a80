"""Features of a frozen tower for views or captions of images: computed once, in half precision, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PIL
from PIL import ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_distinct.data.embedding_cache import cache_name
from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.prepared import names_of, select
from hf_distinct.data.skips import Skips
from hf_distinct.data.workers import TRIAL, fitting_workers, share
from hf_distinct.distributed.nodes import once_per_node, parts_to_compute, wait_for_parts, writes_for_others
from hf_distinct.files.disk_space import check_room, readable_size
from hf_distinct.files.parts import Parts, this_process, written_whole
from hf_distinct.files.seals import digest_of_tensors
from hf_distinct.scorer import clean_caption

logger = logging.get_logger(__name__)

TEXT_TRIAL = "two dogs"
PART_ROWS = 256
"""Images per part; a killed run loses at most one part."""


class TowerInputs(Protocol):
    """What a tower reads of each image: `Views` or `CaptionTokens`.

    Attributes:
        name: what they are, in the plural.
        count: their number per image, V.
    """

    name: ClassVar[str]
    count: int | None

    def identity(self, seed: int) -> list[Any]:
        """Return what the inputs depend on besides the dataset, for the name of a cache."""

    def trial(self) -> Tensor:
        """Return an input as a batch ``(1, ...)``."""

    def of(self, dataset: Dataset, seed: int) -> torch.utils.data.Dataset:
        """Return ranges of rows as inputs ``(rows, V, ...)``, with the reasons why rows have none."""


@dataclass
class Views:
    """The views of an image in training.

    View 0 is the image as the trained model will see it, and with ``mirror`` view 1 is its mirror image. All others
    are random, and with ``mirror`` those with odd numbers are mirrored.

    Attributes:
        plain: turns an RGB image into pixels.
        augmented: a random version of it; None for no random views.
        mirror: whether there are mirrored views.
        count: number of views, V; None for an unlimited number.
        described: identifies the transforms in the name of a cache.
    """

    plain: Callable[[PIL.Image], Tensor]
    augmented: Callable[[PIL.Image], Tensor] | None = None
    mirror: bool = False
    count: int | None = None
    described: str = ""
    name: ClassVar[str] = "views"

    def __post_init__(self) -> None:
        """Raise ValueError if there are not that many different views."""
        if self.count is not None and self.augmented is None and self.count > 1 + self.mirror:
            have = "two different views" if self.mirror else "one view (two with --mirror true)"
            raise ValueError(f"cached_views={self.count}, but without --augmentation an image has only {have}.")

    def make(self, image: PIL.Image, number: int) -> Tensor:
        """Return pixels ``(3, height, width)`` of view ``number``."""
        transform = self.plain if self.augmented is None or number <= self.mirror else self.augmented
        return transform(ImageOps.mirror(image) if self.mirror and number % 2 else image)

    def draw(self, rng: random.Random, turned: bool = True) -> int:
        """Draw the number of a view; if ``turned`` is False, of one that is not mirrored.

        Without a ``count``, random views have number 2 or 3 and differ each time they are created.
        """
        first = 2 if self.augmented is not None and self.count is None else 0
        count = first + 1 + self.mirror if self.count is None else self.count
        numbers = range(first, count, 1 if turned or not self.mirror else 2)
        return numbers[0] if len(numbers) == 1 else rng.choice(numbers)

    def identity(self, seed: int) -> list[Any]:
        """See `TowerInputs`."""
        return [self.described, self.mirror, self.count, *([seed] if self.augmented else [])]

    def trial(self) -> Tensor:
        """See `TowerInputs`."""
        return self.plain(TRIAL)[None]

    def of(self, dataset: Dataset, seed: int) -> torch.utils.data.Dataset:
        """See `TowerInputs`."""
        return _ViewsOfRows(dataset, self, seed)


@dataclass
class CaptionTokens:
    """The token ids of all captions of an image, as many as the image with most captions has.

    Images with fewer captions repeat theirs.

    Attributes:
        tokenize: turns n texts into token ids ``(n, context)``.
        count: the largest number of captions of an image, V.
    """

    tokenize: Callable[[list[str]], Tensor]
    count: int | None
    name: ClassVar[str] = "captions"

    def identity(self, seed: int) -> list[Any]:
        """See `TowerInputs`."""
        return [self.name, self.count, self.trial().tolist()]

    def trial(self) -> Tensor:
        """See `TowerInputs`."""
        return self.tokenize([TEXT_TRIAL])

    def of(self, dataset: Dataset, seed: int) -> torch.utils.data.Dataset:
        """See `TowerInputs`."""
        return _TokensOfRows(dataset, self)


def tower_features(
    dataset: Dataset,
    tower: nn.Module,
    inputs: TowerInputs,
    folder: str | os.PathLike[str],
    seed: int = 0,
    num_workers: int = 0,
    batch_size: int = 32,
    strict: bool = False,
) -> tuple[Dataset, Tensor]:
    """Compute the features of V views or captions of N images, or read them from a cache.

    The files are identified by their inputs (weights, transforms, images, captions), and are in half precision. A
    killed run can resume. Processes of torch.distributed that call this together share the work.

    Args:
        dataset: columns ``image``, ``captions`` and ``image_id``.
        tower: turns pixels ``(n, 3, height, width)`` or token ids ``(n, context)`` into features ``(n, ...)``; frozen,
            in eval mode.
        inputs: the views or captions; their ``count`` is V.
        folder: folder of the cache, on a disk shared by all processes.
        seed: seed of the random views.
        num_workers: processes that load images in the background.
        batch_size: views or captions per call of the tower, and images read together.
        strict: raise an error for an image that cannot be decoded; otherwise it is dropped with a warning.

    Returns:
        The dataset without images that cannot be decoded, and features ``(N, V, ...)``, float16, memory-mapped.

    Raises:
        ValueError: no image can be decoded, or (strict) an image cannot be decoded; or a feature is too large for half
            precision.
        OSError: the disk has too little space.
    """
    assert inputs.count is not None
    device = next(tower.parameters()).device
    about = [digest_of_tensors(_on_cpu(tower)), *inputs.identity(seed)]
    fingerprint = hashlib.sha256(repr(about).encode()).hexdigest()
    key = once_per_node(lambda: cache_name(dataset, _Fingerprint(fingerprint)))  # type: ignore[arg-type]
    path = Path(folder) / key.replace("embeddings", "features")
    whole, kept_file = path / "features.npy", path / "rows.json"
    parts = Parts(path / "parts", -(-len(dataset) // PART_ROWS))
    if not whole.is_file():
        shape = tower(inputs.trial().to(device)).shape[1:]
        size = len(dataset) * inputs.count * shape.numel() * 2
        logger.info(
            "Features of %d images, %d %s each of %s numbers, take %s in %s.",
            len(dataset), inputs.count, inputs.name, "x".join(map(str, shape)), readable_size(size), path,
        )  # fmt: skip
        check_room(folder, size + size * len(parts.missing()) // parts.count, "The features")
    joins = writes_for_others(path)
    begin = time.monotonic()
    while not whole.is_file():
        if numbers := parts_to_compute(parts):
            try:
                _compute(numbers, parts, dataset, tower, inputs, seed, num_workers, batch_size)
            except FileNotFoundError:
                if not whole.is_file():  # otherwise another process has already joined the parts
                    raise
        elif joins and not parts.missing():
            _join(parts, whole, kept_file)
            logger.info("Features of %d images took %.1f minutes.", len(dataset), (time.monotonic() - begin) / 60)
        elif joins:
            wait_for_parts(parts, lambda: whole.is_file() or not parts.missing())
        else:
            wait_for_parts(parts, whole.is_file)
    kept = json.loads(kept_file.read_text())
    skips = Skips("the images", strict)
    for row, reason in kept["failures"].items():
        skips.add("undecodable image", f"{names_of(dataset)[int(row)]}: {reason}")
    if not kept["rows"]:
        raise ValueError(f"None of the {len(dataset)} images can be decoded: {skips.summary()}")
    skips.warn()
    features = torch.from_numpy(np.lib.format.open_memmap(whole, mode="c"))
    return select(dataset, kept["rows"], "the images"), features


@dataclass
class _Fingerprint:
    fingerprint: str


def _on_cpu(tower: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in tower.state_dict().items()}


@torch.no_grad()
def _compute(
    numbers: list[int], parts: Parts, dataset: Dataset, tower: nn.Module, inputs: TowerInputs, seed: int,
    num_workers: int,
    batch_size: int,
) -> None:  # fmt: skip
    """Compute and write parts."""
    ranges = [range(n * PART_ROWS, min((n + 1) * PART_ROWS, len(dataset))) for n in numbers]
    batches = [each[i : i + batch_size] for each in ranges for i in range(0, len(each), batch_size)]
    assert inputs.count is not None
    if num_workers:
        num_workers = fitting_workers(num_workers, batch_size * inputs.count * inputs.trial().nbytes)
    loader = DataLoader(
        inputs.of(dataset, seed), sampler=batches, batch_size=None, num_workers=num_workers,
        generator=torch.Generator(),  # otherwise it would draw from the global one
    )  # fmt: skip
    loaded, device = iter(loader), next(tower.parameters()).device
    bar = tqdm(total=sum(map(len, ranges)), desc="features", unit=" images", disable=this_process()[0] != 0)
    for rows in ranges:
        found: list[Tensor] = []
        failures: dict[int, str] = {}
        for _ in range(0, len(rows), batch_size):
            parts.claim(numbers)
            read, failed = next(loaded)
            failures |= failed
            if read is not None:
                flat = read.flatten(0, 1).to(device)
                if flat.ndim == 4:
                    flat = flat.contiguous(memory_format=torch.channels_last)
                seen = torch.cat([tower(each) for each in flat.split(batch_size)])
                found.append(seen.unflatten(0, read.shape[:2]).half().cpu())
            bar.update(batch_size)
        features = torch.cat(found) if found else torch.empty(0)
        if not bool(features.isfinite().all()):
            raise ValueError("The tower's features are NaN, or too large for half precision.")
        told = {"failures": json.dumps(failures), "rows": json.dumps([*rows])}
        parts.write(numbers.pop(0), {"features": features}, told)
    bar.close()


def _join(parts: Parts, whole: Path, kept_file: Path) -> None:
    """Join all parts in one file; broken parts are left to be computed again."""
    try:
        shapes: list[torch.Size] = []
        rows: list[int] = []
        failures: dict[str, str] = {}
        for number in range(parts.count):
            tensors, metadata = parts.read(number)
            failures |= (failed := json.loads(metadata["failures"]))
            rows += [row for row in json.loads(metadata["rows"]) if str(row) not in failed]
            shapes += [tensors["features"].shape] if len(tensors["features"]) else []
        with written_whole(kept_file) as temporary:
            temporary.write_text(json.dumps({"rows": rows, "failures": failures}))
        with written_whole(whole) as temporary, temporary.open("wb") as file:
            shape = (len(rows), *(shapes[0][1:] if shapes else ()))
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for number in range(parts.count):
                file.write(parts.read(number)[0]["features"].numpy().astype("<f2").tobytes())
    except (ValueError, FileNotFoundError) as error:
        logger.warning("A part of the features is computed again: %s", error)
        return
    shutil.rmtree(parts.folder, ignore_errors=True)


class _ViewsOfRows(torch.utils.data.Dataset):
    """Ranges of rows as pixels ``(rows, V, 3, height, width)``; by row, the reason why there are none."""

    def __init__(self, dataset: Dataset, views: Views, seed: int) -> None:
        # decode=False: otherwise datasets would fail on the whole batch, without the name of the broken image.
        self.encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False)).with_format(None)
        self.views, self.seed = views, seed

    def __getitem__(self, rows: range) -> tuple[Tensor | None, dict[int, str]]:
        found, failures = [], {}
        for row, value in zip(rows, self.encoded[rows.start : rows.stop]["image"], strict=True):
            try:
                image = decode_image(value)
            except ImageError as error:
                failures[row] = str(error)
                continue
            found.append(torch.stack([self._make(image, row, view) for view in range(self.views.count or 0)]))
        pixels = torch.stack(found) if found else None
        share([pixels])
        return pixels, failures

    def _make(self, image: PIL.Image, row: int, view: int) -> Tensor:
        """Create a view that only depends on seed, row and view number."""
        state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, row, view)))
            random.seed(hash((self.seed, row, view)))  # open_clip's colour jitter draws from it
            made = self.views.make(image, view)
        random.setstate(state)
        return made


class _TokensOfRows(torch.utils.data.Dataset):
    """Ranges of rows as token ids ``(rows, V, context)`` of their captions; no row fails."""

    def __init__(self, dataset: Dataset, inputs: CaptionTokens) -> None:
        self.captions = dataset.select_columns(["captions"]).with_format(None)
        self.inputs = inputs

    def __getitem__(self, rows: range) -> tuple[Tensor, dict[int, str]]:
        count, captions = self.inputs.count or 0, self.captions[rows.start : rows.stop]["captions"]
        texts = [clean_caption(own[place % len(own)]) for own in captions for place in range(count)]
        token_ids = self.inputs.tokenize(texts).unflatten(0, (len(rows), count))
        share([token_ids])
        return token_ids, {}
