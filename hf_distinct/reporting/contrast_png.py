"""Draw the contrast sheet as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from hf_distinct.reporting.contrast_rows import (
    IMAGE_SIZE,
    LEGEND,
    SIMILAR_IN_COLUMN,
    SIMILAR_SIZE,
    Caption,
    ContrastRow,
)
from hf_distinct.reporting.picture import fit_image

WIDTH, MARGIN, GAP = 1600, 48, 32
INK, GREY, LINE = "#111111", "#444444", "#999999"
SIMILAR_GAP = 8
BODY_HEIGHT = max(IMAGE_SIZE, SIMILAR_IN_COLUMN * (SIMILAR_SIZE + SIMILAR_GAP) - SIMILAR_GAP)


def paint(rows: Sequence[ContrastRow], title: str, subtitle: str) -> Image.Image:
    """Return the sheet as an RGB image, `WIDTH` pixels wide and as high as the rows need."""
    columns = -(-max(len(row.similar) for row in rows) // SIMILAR_IN_COLUMN)
    text_left = similar_left = MARGIN + IMAGE_SIZE + GAP
    if columns:
        text_left += columns * (SIMILAR_SIZE + SIMILAR_GAP) - SIMILAR_GAP + GAP
    text_width = max(WIDTH - MARGIN - text_left, WIDTH // 3)
    width = text_left + text_width + MARGIN  # wider than WIDTH only when many similar images leave no room for text

    head = _Text(width - 2 * MARGIN)
    head.add(title, 40, bold=True, space=10)
    head.add(subtitle, 24, colour=GREY, space=14)
    head.add(LEGEND, 20, colour=GREY, space=20)
    texts = [_captions(row.captions, text_width) for row in rows]
    heights = [max(BODY_HEIGHT, text.height) for text in texts]
    column_titles = 30
    height = MARGIN + head.height + column_titles + sum(heights) + 2 * GAP * len(rows)

    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    head.draw(draw, MARGIN, MARGIN)
    top = MARGIN + head.height
    draw.text((MARGIN, top), "Image", fill=GREY, font=dejavu(18, True))
    if columns:
        draw.text((similar_left, top), "Most similar", fill=GREY, font=dejavu(18, True))
    draw.text((text_left, top), "Captions", fill=GREY, font=dejavu(18, True))
    top += column_titles
    for row, text, row_height in zip(rows, texts, heights, strict=True):
        draw.line((MARGIN, top, width - MARGIN - 1, top), fill=LINE)
        top += GAP
        _paste(sheet, fit_image(row.image, IMAGE_SIZE), MARGIN, top, IMAGE_SIZE, frame=4, colour=INK)
        for place, image in enumerate(row.similar):
            column, line = divmod(place, SIMILAR_IN_COLUMN)
            left = similar_left + column * (SIMILAR_SIZE + SIMILAR_GAP)
            upper = top + line * (SIMILAR_SIZE + SIMILAR_GAP)
            _paste(sheet, fit_image(image, SIMILAR_SIZE), left, upper, SIMILAR_SIZE, frame=1, colour=LINE)
        text.draw(draw, text_left, top)
        top += row_height + GAP
    return sheet


def _captions(captions: list[Caption], width: int) -> _Text:
    text = _Text(width)
    for caption in captions:
        text.add(caption.speaker, 20, bold=True, colour=GREY, suffix=caption.verdict, suffix_colour=caption.colour)
        text.add(caption.text, 26, space=16)
    return text


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int, size: int, frame: int, colour: str) -> None:
    """Paste an image into the middle of its square, with a frame around the image."""
    left += (size - image.width) // 2
    top += (size - image.height) // 2
    sheet.paste(image, (left, top))
    box = (left - frame, top - frame, left + image.width + frame - 1, top + image.height + frame - 1)
    ImageDraw.Draw(sheet).rectangle(box, outline=colour, width=frame)


class _Text:
    """Lines of wrapped text whose height is known before they are drawn."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.height = 0
        self.pieces: list[tuple[int, int, str, str, ImageFont.FreeTypeFont]] = []

    def add(
        self, text: str, size: int, bold: bool = False, colour: str = INK, space: int = 4,
        suffix: str = "", suffix_colour: str = INK,
    ) -> None:  # fmt: skip
        """Add a paragraph with `space` pixels after it; `suffix` continues its last line in another colour."""
        if not text:
            return
        font = dejavu(size, bold)
        for line in wrap(text, font, self.width):
            self.pieces.append((0, self.height, line, colour, font))
            self.height += round(size * 1.3)
        if suffix:
            left, top, line, _, _ = self.pieces[-1]
            self.pieces.append((left + round(font.getlength(line + "  ")), top, suffix, suffix_colour, font))
        self.height += space

    def draw(self, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
        """Draw the lines with their upper left corner at (left, top)."""
        for x, y, line, colour, font in self.pieces:
            draw.text((left + x, top + y), line, fill=colour, font=font)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Wrap text to lines of at most `width` pixels: between words, or within a single word that is too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@cache
def dejavu(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and has the check marks; Pillow's own font lacks them."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)
