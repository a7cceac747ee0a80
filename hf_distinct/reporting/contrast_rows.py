"""The rows of a contrast sheet: an image, its most similar images, and its captions before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from hf_distinct.text.escaping import plain

IMAGE_SIZE = 256
"""Longest side of a row's own image, in pixels."""
SIMILAR_SIZE = 128
"""Longest side of a similar image, in pixels."""
SIMILAR_IN_COLUMN = 2
"""Number of similar images per column."""
FOUND_COLOUR, MISSED_COLOUR = "#00508f", "#b03a00"  # blue and orange: distinguishable for colour-blind people


@dataclass(frozen=True)
class ContrastRow:
    """One image of a contrast sheet.

    Args:
        image: the image that the captions describe; any mode and size.
        similar: the most similar images, the most similar first; may be empty.
        reference: a person's caption.
        before: the caption of the captioner before training.
        before_rank: rank of the image, from 1, when a CLIP model orders the gallery by similarity to `before`.
        after: the caption of the trained captioner.
        after_rank: the same for `after`.
        gallery_size: the number of images in the gallery; 0 if it should not be shown.

    Raises:
        ValueError: a rank is below 1 or above the gallery size.
    """

    image: Image.Image
    similar: Sequence[Image.Image]
    reference: str
    before: str
    before_rank: int
    after: str
    after_rank: int
    gallery_size: int = 0

    def __post_init__(self) -> None:
        """Check the ranks."""
        for name, rank in (("before_rank", self.before_rank), ("after_rank", self.after_rank)):
            if rank < 1 or (self.gallery_size and rank > self.gallery_size):
                raise ValueError(f"{name} is {rank}: ranks go from 1 to the number of images ({self.gallery_size}).")

    @property
    def captions(self) -> list[Caption]:
        """Return the three captions of the row in display order."""
        return [
            Caption("Person", self.reference),
            Caption("Before", self.before, self.before_rank, self.gallery_size),
            Caption("After", self.after, self.after_rank, self.gallery_size),
        ]


@dataclass(frozen=True)
class Caption:
    """A caption to display: its author, its text, and the rank of its image (0: not ranked)."""

    speaker: str
    raw_text: str
    rank: int = 0
    gallery_size: int = 0

    @property
    def text(self) -> str:
        """Return the text on one line, without control characters."""
        return plain(self.raw_text) or "(no words)"

    @property
    def verdict(self) -> str:
        """Return the rank in words after a mark, or an empty string."""
        if not self.rank:
            return ""
        among = f" of {self.gallery_size}" if self.gallery_size else ""
        return f"{'✓' if self.rank == 1 else '✗'} rank {self.rank}{among}"

    @property
    def colour(self) -> str:
        """Return the colour that goes with the verdict."""
        return FOUND_COLOUR if self.rank == 1 else MISSED_COLOUR


LEGEND = (
    "Rank: a CLIP model orders all images of the gallery by similarity to the caption; the rank is the position of "
    "the right one. ✓ rank 1: the caption identifies its image. ✗ rank 5: four other images fit it at least as well."
)
