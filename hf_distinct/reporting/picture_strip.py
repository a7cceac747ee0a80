"""A strip of numbered images, for a table of captions below it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from hf_distinct.reporting.contrast_png import INK, dejavu
from hf_distinct.reporting.picture import fit_image

SIZE, GAP, IN_ROW, LINE = 192, 16, 6, 32


def write_picture_strip(pictures: Sequence[Image.Image], path: str | os.PathLike[str]) -> None:
    """Write images side by side as one PNG, numbered from 1, in rows of six.

    Args:
        pictures: of any mode and size.
        path: the PNG file to write; its folder is created if needed.

    Raises:
        ValueError: there are no images.
    """
    if not pictures:
        raise ValueError("a strip needs at least one image.")
    columns, rows = min(len(pictures), IN_ROW), -(-len(pictures) // IN_ROW)
    strip = Image.new("RGB", (GAP + columns * (SIZE + GAP), GAP + rows * (SIZE + LINE + GAP)), "white")
    draw = ImageDraw.Draw(strip)
    for place, picture in enumerate(pictures):
        fitted = fit_image(picture, SIZE)
        left = GAP + place % IN_ROW * (SIZE + GAP)
        top = GAP + place // IN_ROW * (SIZE + LINE + GAP)
        strip.paste(fitted, (left + (SIZE - fitted.width) // 2, top + (SIZE - fitted.height) // 2))
        middle = (left + SIZE // 2, top + SIZE + LINE // 2)
        draw.text(middle, str(place + 1), fill=INK, font=dejavu(22, True), anchor="mm")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    strip.save(path, format="PNG", optimize=True)
