"""The rows of a contrast sheet for the pictures of a gallery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_distinct.reporting.contrast_rows import ContrastRow

if TYPE_CHECKING:
    from hf_distinct.gallery import Gallery


def contrast_rows(
    gallery: Gallery, before: list[str], after: list[str], clip: str, count: int = 8
) -> list[ContrastRow]:
    """Build ``count`` rows for pictures evenly spread over the gallery, so that nobody selects them."""
    ranks_before, ranks_after = gallery.ranks(before, clip), gallery.ranks(after, clip)
    rows = []
    for row in range(0, len(before), max(len(before) // count, 1)):
        similar = [gallery.dataset[i]["image"] for i in gallery.most_similar(row, clip)]
        example = gallery.dataset[row]
        rows.append(
            ContrastRow(
                image=example["image"],
                similar=similar,
                reference=example["captions"][0],
                before=before[row],
                before_rank=ranks_before[row],
                after=after[row],
                after_rank=ranks_after[row],
                gallery_size=len(before),
            )  # fmt: skip
        )
    return rows[:count]
