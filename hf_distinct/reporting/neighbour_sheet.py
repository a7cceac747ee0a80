"""An HTML sheet of images with their mined neighbours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hf_distinct.reporting.picture import embedded_image
from hf_distinct.text.escaping import as_html

SIZE = 160
"""Longest side of an image, in pixels."""

_STYLE = """
body { font: 16px/1.4 "DejaVu Sans", Verdana, sans-serif; color: #111; background: #fff;
       max-width: 1200px; margin: 2em auto; padding: 0 1.5em; }
article { display: flex; flex-wrap: wrap; gap: 16px; padding: 16px 0; border-top: 1px solid #999; }
figure { margin: 0; width: 180px; font-size: 13px; color: #444; overflow-wrap: anywhere; }
img { display: block; border: 1px solid #999; } .own img { border: 3px solid #111; }
pre { overflow-x: auto; }
"""


@dataclass(frozen=True)
class SheetPicture:
    """One image of the sheet.

    Args:
        image: of any mode and size.
        caption: a person's caption.
        label: a line below it: its image id, rank and similarity.
    """

    image: Image.Image
    caption: str
    label: str


def write_neighbour_sheet(
    rows: Sequence[Sequence[SheetPicture]],
    path: str | os.PathLike[str],
    title: str = "Images and their neighbours",
    summary: str = "",
) -> None:
    """Write one HTML file that contains its images.

    Args:
        rows: for each image the image itself, followed by its neighbours, the most similar first.
        path: the file to write; its folder is created if needed.
        title: the heading.
        summary: text below it; its line breaks are kept.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a sheet of neighbours needs at least one image.")
    articles = []
    for own, *neighbours in rows:
        figures = [_figure(own, "own"), *(_figure(each, "neighbour") for each in neighbours)]
        if not neighbours:
            figures.append("<p>no neighbours</p>")
        articles.append(f"<article>{''.join(figures)}</article>")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{as_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{as_html(title)}</h1>\n"
        f"<pre>{as_html(summary, lines=True)}</pre>\n" + "\n".join(articles) + "\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _figure(picture: SheetPicture, kind: str) -> str:
    return (
        f'<figure class="{kind}">{embedded_image(picture.image, SIZE, picture.caption)}'
        f"<figcaption><b>{as_html(picture.label)}</b><br>{as_html(picture.caption)}</figcaption></figure>"
    )
