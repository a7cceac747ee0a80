"""An HTML sheet of images with their captions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hf_distinct.data.images import decode_image
from hf_distinct.reporting.picture import embedded_image
from hf_distinct.text.escaping import as_html

PICTURE_SIZE = 256
"""Longer side of an image that is stored in the sheet, in pixels."""
THUMBNAIL_SIZE, THUMBNAIL_QUALITY = 200, 70
"""Longer side and JPEG quality of the small copy of an image file."""

_STYLE = """
body { font: 16px/1.4 "DejaVu Sans", Verdana, sans-serif; color: #111; background: #fff; margin: 2em auto;
       max-width: 1200px; padding: 0 1.5em; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 24px 16px; }
figure { margin: 0; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: 200px; object-fit: contain; background: #eee; }
p { margin: 6px 0; }
small { color: #444; }
"""


Shown = Path | Image.Image | Mapping[str, Any]
Said = str | Sequence[str] | Mapping[str, str]


def write_caption_sheet(
    rows: Iterable[tuple[Shown, Said]],
    path: str | os.PathLike[str],
    title: str = "Captions",
    root: str | os.PathLike[str] = "",
    remark: str = "",
) -> None:
    """Write one HTML file that contains its images, so that it can be moved, sent and opened anywhere.

    Args:
        rows: each image and its captions: one, several, or one per author. For an image file, and for an encoded image
            (``{"bytes": ..., "path": name}``), the sheet contains a small copy (about 5 KB) and the name.
        path: the file to write.
        title: the heading.
        root: the folder that file names are shown relative to.
        remark: a sentence below the heading.

    Raises:
        ValueError: there are no rows, or a file cannot be decoded.
    """
    figures = "\n".join(_figure(picture, said, Path(root)) for picture, said in rows)
    if not figures:
        raise ValueError("a sheet of captions needs at least one image.")
    below = f"<p>{as_html(remark)}</p>\n" if remark else ""
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{as_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{as_html(title)}</h1>\n"
        f"{below}<main>\n{figures}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _figure(picture: Shown, said: Said, root: Path) -> str:
    if isinstance(said, Mapping):
        captions = list(said.values())
        texts = [f"<p><small>{as_html(who)}</small><br>{as_html(text)}</p>" for who, text in said.items()]
    else:
        captions = [said] if isinstance(said, str) else list(said)
        texts = [f"<p>{as_html(each)}</p>" for each in captions]
    if isinstance(picture, Image.Image):
        image = embedded_image(picture, PICTURE_SIZE, captions[0])
    else:
        encoded = {"path": str(picture)} if isinstance(picture, Path) else picture
        path = Path(str(encoded["path"]))
        name = path.relative_to(root) if path.is_relative_to(root) else path
        texts.append(f"<small>{as_html(name.as_posix())}</small>")
        image = embedded_image(decode_image(encoded), THUMBNAIL_SIZE, captions[0], THUMBNAIL_QUALITY)
    return f"<figure>{image}<figcaption>{''.join(texts)}</figcaption></figure>"
