"""A contrast sheet: images beside the images they are confused with, and what a captioner said before and after.

Written twice from the same rows: an HTML file that needs no other file, and a PNG for a slide. Marks and words carry
the message; colour only repeats it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from hf_distinct.reporting.picture import embedded_image
from hf_distinct.text.escaping import as_html, plain

if TYPE_CHECKING:
    from hf_distinct.gallery import Gallery

IMAGE_SIZE = 256
"""Longest side of a row's own image, in pixels."""
SIMILAR_SIZE = 128
"""Longest side of a similar image, in pixels."""
SIMILAR_IN_COLUMN = 2
"""How many similar images stand below each other."""
FOUND_COLOUR, MISSED_COLOUR = "#00508f", "#b03a00"  # blue and orange: told apart by colour-blind people too


@dataclass(frozen=True)
class ContrastRow:
    """One image of a contrast sheet.

    Args:
        image: the image that the captions describe; any mode and size.
        similar: the images it is most easily confused with, the most similar first; may be empty.
        reference: a person's caption.
        before: the caption of the captioner compared with.
        before_rank: where the image comes, from 1, when a CLIP model orders the gallery by similarity to `before`.
        after: the caption of the trained captioner.
        after_rank: the same for `after`.
        gallery_size: the number of images that are ordered; 0 if it is not to be shown.

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
        """Refuse ranks that cannot be."""
        for name, rank in (("before_rank", self.before_rank), ("after_rank", self.after_rank)):
            if rank < 1 or (self.gallery_size and rank > self.gallery_size):
                raise ValueError(f"{name} is {rank}: ranks go from 1 to the number of images ({self.gallery_size}).")

    @property
    def captions(self) -> list[Caption]:
        """The three captions of the row in the order in which they are shown."""
        return [
            Caption("Person", self.reference),
            Caption("Before", self.before, self.before_rank, self.gallery_size),
            Caption("After", self.after, self.after_rank, self.gallery_size),
        ]


@dataclass(frozen=True)
class Caption:
    """A caption as it is shown: who said it, what, and the rank it gives its image (0: not ranked)."""

    speaker: str
    raw_text: str
    rank: int = 0
    gallery_size: int = 0

    @property
    def text(self) -> str:
        """The text on one line, without what would act instead of being seen."""
        return plain(self.raw_text) or "(no words)"

    @property
    def verdict(self) -> str:
        """The rank in words after a mark, or an empty string."""
        if not self.rank:
            return ""
        among = f" of {self.gallery_size}" if self.gallery_size else ""
        return f"{'✓' if self.rank == 1 else '✗'} rank {self.rank}{among}"

    @property
    def colour(self) -> str:
        """The colour that repeats the verdict."""
        return FOUND_COLOUR if self.rank == 1 else MISSED_COLOUR


LEGEND = (
    "Rank: a CLIP model orders all images of the gallery by how well they fit the caption; the rank is the place of "
    "the right one. ✓ rank 1: the caption singles out its image. ✗ rank 5: four other images fit it at least as well."
)


def contrast_rows(
    gallery: Gallery, before: list[str], after: list[str], clip: str, count: int = 8
) -> list[ContrastRow]:
    """Pictures evenly spread over the gallery: nobody picked them."""
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


def write_contrast_sheet(
    rows: Sequence[ContrastRow],
    html_path: str | os.PathLike[str],
    png_path: str | os.PathLike[str],
    title: str = "Captions before and after",
    subtitle: str = "",
) -> None:
    """Write a contrast sheet as one HTML file, images included, and as one PNG of 1600 pixels in width.

    Texts are wrapped, never cut, and escaped in the HTML. The PNG is set in DejaVu Sans, which lacks the letters of
    some scripts (Chinese among them); the HTML shows whatever the browser can.

    Args:
        rows: the images, in the order in which they are shown; about four fill a slide.
        html_path: the HTML file to write; its folder is made where it is missing.
        png_path: the PNG file to write; its folder is made where it is missing.
        title: the heading.
        subtitle: a line under it, such as the data, the model and the scorer; may be empty.

    Raises:
        ValueError: there are no rows.
    """
    from hf_distinct.reporting.contrast_png import paint  # it imports fonts that only this needs

    if not rows:
        raise ValueError("a contrast sheet needs at least one row.")
    for path in (Path(html_path), Path(png_path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    Path(html_path).write_text(_html(rows, title, subtitle), encoding="utf-8")
    paint(rows, title, subtitle).save(png_path, format="PNG")


_STYLE = f"""
body {{ font: 18px/1.4 "DejaVu Sans", Verdana, sans-serif; color: #111; background: #fff;
       max-width: 1200px; margin: 2em auto; padding: 0 1.5em; }}
h1 {{ margin: 0 0 .2em; }} p {{ margin: 0 0 .6em; }} .legend {{ font-size: 15px; color: #444; }}
article {{ display: flex; flex-wrap: wrap; gap: 24px; padding: 20px 0; border-top: 1px solid #999;
          break-inside: avoid; }}
img {{ display: block; border: 1px solid #999; }} .own img {{ border: 3px solid #111; }}
figure {{ margin: 0; }} figcaption {{ font-size: 14px; color: #444; }}
.similar div {{ display: grid; grid-auto-flow: column; gap: 6px;
                grid-template-rows: repeat({SIMILAR_IN_COLUMN}, auto); }}
dl {{ flex: 1 1 360px; margin: 0; }} dt {{ font-weight: bold; font-size: 15px; }}
dd {{ margin: 0 0 .8em; overflow-wrap: anywhere; }}
.found {{ color: {FOUND_COLOUR}; }} .missed {{ color: {MISSED_COLOUR}; }}
"""


def _html(rows: Sequence[ContrastRow], title: str, subtitle: str) -> str:
    body = "\n".join(_html_row(row) for row in rows)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{as_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{as_html(title)}</h1>\n<p>{as_html(subtitle)}</p>\n"
        f'<p class="legend">{as_html(LEGEND)}</p>\n{body}\n</body>\n</html>\n'
    )


def _html_row(row: ContrastRow) -> str:
    own = embedded_image(row.image, IMAGE_SIZE, f"The image: {row.captions[0].text}")
    similar = "".join(embedded_image(image, SIMILAR_SIZE, "A similar image") for image in row.similar)
    if similar:
        similar = f'<figure class="similar"><figcaption>Most similar</figcaption><div>{similar}</div></figure>\n'
    captions = []
    for caption in row.captions:
        kind = "found" if caption.rank == 1 else "missed"
        captions.append(
            f'<dt>{caption.speaker} <span class="{kind}">{caption.verdict}</span></dt><dd>{as_html(caption.text)}</dd>'
        )
    return (
        f'<article>\n<figure class="own"><figcaption>Image</figcaption>{own}</figure>\n{similar}'
        f"<dl>{''.join(captions)}</dl>\n</article>"
    )
