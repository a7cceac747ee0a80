"""CLIP embeddings of a dataset's images and captions, in memory or memory-mapped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class CaptionEmbeddings:
    """CLIP embeddings of N images and of all their C captions, L2-normalised, on the CPU.

    New embeddings are float32 in memory. Those from a cache are float16 and memory-mapped: rows are read on demand,
    and processes share them. `images` and `captions` return float32 in both cases.

    Attributes:
        image_embeds: (N, dim).
        caption_embeds: (C, dim), the captions of row 0 first, in the order of the dataset.
        caption_offsets: (N + 1,) int64; the captions of row r begin at `caption_offsets[r]` and end before
            `caption_offsets[r + 1]`.
        folder: the folder of the memory-mapped files; None in memory.
    """

    image_embeds: Tensor
    caption_embeds: Tensor
    caption_offsets: Tensor
    folder: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check that the shapes match; raises ValueError."""
        num_images, offsets = len(self.image_embeds), self.caption_offsets
        if offsets.shape != (num_images + 1,) or offsets[0] != 0 or offsets[-1] != len(self.caption_embeds):
            raise ValueError(
                f"caption_offsets of shape {tuple(offsets.shape)} do not fit {num_images} images and "
                f"{len(self.caption_embeds)} captions: expected {num_images + 1} numbers, from 0 to the last."
            )

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.image_embeds)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send memory-mapped embeddings to another process as the folder, not as their content."""
        if self.folder is not None:
            return CaptionEmbeddings.load, (self.folder,)
        return CaptionEmbeddings, (self.image_embeds, self.caption_embeds, self.caption_offsets)

    def images(self, rows: Tensor) -> Tensor:
        """Return the embeddings of images: rows of shape (...) give (..., dim), float32, normalised."""
        return _unit(self.image_embeds[rows])

    def captions(self, places: Tensor) -> Tensor:
        """Return the embeddings of captions by index among all C: (...) gives (..., dim), float32, normalised."""
        return _unit(self.caption_embeds[places])

    def captions_of(self, row: int) -> Tensor:
        """Return the embeddings of the captions of row `row`: (number of captions, dim), float32, normalised."""
        return _unit(self.caption_embeds[self.caption_offsets[row] : self.caption_offsets[row + 1]])

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write three .npy files into a folder, the embeddings as float16."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            tensor = getattr(self, name)
            np.save(Path(folder) / f"{name}.npy", (tensor.half() if tensor.is_floating_point() else tensor).numpy())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CaptionEmbeddings:
        """Memory-map the files that `save` wrote; raises ValueError with the folder's name if they are missing."""
        try:
            # Mode "c": torch requires a writable view; the file does not change.
            arrays = [_map(Path(folder) / f"{name}.npy") for name in ARRAYS]
            images, captions, offsets = map(torch.from_numpy, arrays)
            return cls(images, captions, offsets, Path(folder))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{str(folder)!r} contains no caption embeddings: {error}") from error


ARRAYS = ("image_embeds", "caption_embeds", "caption_offsets")


def _map(path: Path) -> np.ndarray:
    """Memory-map an array; pickles, archives and arrays larger than the file are rejected."""
    try:
        array = np.lib.format.open_memmap(path, mode="c")  # rejects pickled objects
    except (OSError, ValueError):
        raise
    except Exception as error:  # from an invalid header: OverflowError, SyntaxError, MemoryError, ...
        raise ValueError(f"{path.name} is not an array: {type(error).__name__}: {error}") from error
    dimensions = 1 if path.stem == "caption_offsets" else 2
    if array.ndim != dimensions or array.dtype.kind != ("i" if dimensions == 1 else "f"):
        kind = "integers" if dimensions == 1 else "floats"
        raise ValueError(
            f"{path.name} contains {array.dtype} of shape {array.shape}: expected {dimensions} dimensions of {kind}"
        )
    return array


def _unit(embeds: Tensor) -> Tensor:
    """Return float32 unchanged; normalise float16 again, since rounding changes the length by up to 1e-4."""
    return embeds if embeds.dtype == torch.float32 else F.normalize(embeds.float(), dim=-1)


@dataclass
class EmbeddedRows:
    """Embeddings of a range of rows whose images can be decoded, and the reasons for the others.

    Attributes:
        image_embeds: (decodable, dim).
        caption_embeds: (their captions, dim).
        caption_counts: (decodable,) int64.
        failures: why an image cannot be decoded, by row of the dataset.
        losses: what an image loses in RGB, by row of the dataset.
    """

    image_embeds: Tensor
    caption_embeds: Tensor
    caption_counts: Tensor
    failures: dict[int, str]
    losses: dict[int, str] = field(default_factory=dict)
