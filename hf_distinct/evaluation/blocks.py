"""Captions and references in blocks of images, so that memory does not grow with their number; and their checks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

BLOCK = 1024
"""Images in a block."""
Rows = TypeVar("Rows", bound=Sequence)


def in_blocks(rows: Rows) -> Iterator[Rows]:
    """Yield `BLOCK` rows at a time, of a list or of a column of a dataset."""
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]  # type: ignore[misc]


def check_references(references: Sequence[str], row: int | None = None) -> None:
    """Raise ValueError, which names the row, unless an image has a list of at least one reference caption."""
    where = "" if row is None else f"row {row}: "
    if isinstance(references, str):
        raise ValueError(f"{where}references must be a list of captions, got the single string {references[:40]!r}.")
    if not references:
        raise ValueError(f"{where}no reference caption; drop the image or add one.")


def check_rows(captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise ValueError unless there is one caption, and at least one reference, for each image."""
    if isinstance(captions, str) or len(captions) != len(references):
        raise ValueError(
            f"captions and references must be lists of equal length, one row per image; got {len(captions)} captions "
            f"and {len(references)} lists of references."
        )
    if not captions:
        raise ValueError("there are no captions to score.")
    for row, own in enumerate(own for block in in_blocks(references) for own in block):
        check_references(own, row)
