"""An HTML sheet of images with their captions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

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


Said = str | Sequence[str] | Mapping[str, str]


def write_caption_sheet(
    rows: Sequence[tuple[Path | Image.Image, Said]],
    path: str | os.PathLike[str],
    title: str = "Captions",
    root: str | os.PathLike[str] = "",
    remark: str = "",
) -> None:
    """Write one HTML file that contains its images, so that it can be moved, sent and opened anywhere.

    Args:
        rows: each image and its captions: one, several, or one per author. For an image file, the sheet contains a
            small copy (about 5 KB) and the file name.
        path: the file to write.
        title: the heading.
        root: the folder that file names are shown relative to.
        remark: a sentence below the heading.

    Raises:
        ValueError: there are no rows, or a file cannot be decoded.
    """
    if not rows:
        raise ValueError("a sheet of captions needs at least one image.")
    figures = "\n".join(_figure(picture, said, Path(root)) for picture, said in rows)
    below = f"<p>{as_html(remark)}</p>\n" if remark else ""
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{as_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{as_html(title)}</h1>\n"
        f"{below}<main>\n{figures}\n</main>\n</body>\n</html>\n",
        encoding="utf-8",
    )


def _figure(picture: Path | Image.Image, said: Said, root: Path) -> str:
    if isinstance(said, Mapping):
        captions = list(said.values())
        texts = [f"<p><small>{as_html(who)}</small><br>{as_html(text)}</p>" for who, text in said.items()]
    else:
        captions = [said] if isinstance(said, str) else list(said)
        texts = [f"<p>{as_html(each)}</p>" for each in captions]
    if isinstance(picture, Path):
        name = picture.relative_to(root) if picture.is_relative_to(root) else picture
        texts.append(f"<small>{as_html(name.as_posix())}</small>")
        decoded = decode_image({"path": str(picture), "bytes": None})
        image = embedded_image(decoded, THUMBNAIL_SIZE, captions[0], THUMBNAIL_QUALITY)
    else:
        image = embedded_image(picture, PICTURE_SIZE, captions[0])
    return f"<figure>{image}<figcaption>{''.join(texts)}</figcaption></figure>"
