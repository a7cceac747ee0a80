"""A sheet of pictures with the captions that were written for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from .picture import embedded_image

PICTURE_SIZE = 256
"""Longer side of a picture that the file holds, in pixels."""

_STYLE = """
body { font: 16px/1.4 "DejaVu Sans", Verdana, sans-serif; color: #111; background: #fff; margin: 2em auto;
       max-width: 1200px; padding: 0 1.5em; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 24px 16px; }
figure { margin: 0; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: 200px; object-fit: contain; background: #eee; }
p { margin: 6px 0; }
small { color: #444; }
"""


Said = str | Sequence[str] | Mapping[str, str]


def write_caption_sheet(
    rows: Sequence[tuple[str | Image.Image, Said]], path: str | os.PathLike[str], title: str = "Captions"
) -> None:
    """Write one HTML file.

    Args:
        rows: for each picture its path, relative to the folder of ``path``, which the file links to and thus stays
            small however many they are; or the picture itself, which the file then holds. And what is said of it: a
            caption, several, or one by each speaker.
        path: the file to write.
        title: the heading.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a sheet of captions needs at least one picture.")
    figures = "\n".join(_figure(*row) for row in rows)
    # surrogateescape: a file's name need not be UTF-8.
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<main>\n{figures}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
        errors="surrogateescape",
    )


def _figure(picture: str | Image.Image, said: Said) -> str:
    if isinstance(said, Mapping):
        captions = list(said.values())
        texts = [f"<p><small>{escape(who)}</small><br>{escape(text)}</p>" for who, text in said.items()]
    else:
        captions = [said] if isinstance(said, str) else list(said)
        texts = [f"<p>{escape(each)}</p>" for each in captions]
    if isinstance(picture, str):
        source = quote(os.fsencode(picture.replace(os.sep, "/")))
        image = f'<img loading="lazy" alt="{escape(captions[0])}" src="{escape(source)}">'
        texts.append(f"<small>{escape(picture)}</small>")
    else:
        image = embedded_image(picture, PICTURE_SIZE, captions[0])
    return f"<figure>{image}<figcaption>{''.join(texts)}</figcaption></figure>"
