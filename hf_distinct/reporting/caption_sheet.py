"""An HTML sheet of images with their captions: one file, or for many images a page with parts beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from hf_distinct.data.images import decode_image
from hf_distinct.files.parts import written_whole
from hf_distinct.reporting.picture import embedded_image
from hf_distinct.text.escaping import as_html

PICTURE_SIZE = 256
"""Longer side of an image that is stored in the sheet, in pixels."""
IN_ONE_FILE = 1000
"""Images in the page, and in each part: 5 to 11 MB of photographs."""
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

# A page that was opened from a disk may not fetch files, but it may run scripts: a part is a script that calls `show`.
# The observer reports at once what it begins to observe, so that a part that does not fill the window is followed.
_SCRIPT = """
const parts = %(parts)d, folder = %(folder)s, end = document.getElementById("end");
const observer = new IntersectionObserver(seen => { if (seen.some(each => each.isIntersecting)) load(); },
                                          { rootMargin: "2000px" });
let next = 1;
function load() {
  observer.unobserve(end);
  const script = document.createElement("script");
  script.src = folder + "/" + next + ".js";
  script.onerror = () => { end.textContent = script.src + " is missing: keep this folder beside the page."; };
  document.head.append(script);
}
function show(figures) {
  document.querySelector("main").insertAdjacentHTML("beforeend", figures);
  next += 1;
  if (next > parts) end.remove(); else observer.observe(end);
}
observer.observe(end);
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
    """Write an HTML page that contains its images, and opens from a disk without a network.

    Up to `IN_ONE_FILE` images are one file, which can be moved and sent. Of more, the page has the first, and loads
    the others as the reader scrolls, from a folder beside it: ``captions.parts`` for ``captions.html``.

    Args:
        rows: each image and its captions: one, several, or one per author. Of an image file, and of an encoded image
            (``{"bytes": ..., "path": name}``), the sheet contains a small copy (5 to 11 KB) and the name.
            `IN_ONE_FILE` rows at a time are read.
        path: the file to write.
        title: the heading.
        root: the folder that file names are shown relative to.
        remark: a sentence below the heading.

    Raises:
        ValueError: there are no rows, or a file cannot be decoded.
    """
    left = iter(rows)
    path, first = Path(path), _figures(left, Path(root))
    if not first:
        raise ValueError("a sheet of captions needs at least one image.")
    folder = path.with_suffix(".parts")
    parts = _write_parts(left, folder, Path(root))
    for stale in folder.glob("*.js"):  # of an earlier page with more images
        if stale.stem.isdecimal() and int(stale.stem) > parts:
            stale.unlink()
    if folder.is_dir() and not parts and not any(folder.iterdir()):
        folder.rmdir()
    below = f"<p>{as_html(remark)}</p>\n" if remark else ""
    script = _SCRIPT % {"parts": parts, "folder": _as_script(quote(folder.name))}
    more = f'<p id="end">Loading more images ...</p>\n<script>{script}</script>\n' if parts else ""
    path.write_text(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{as_html(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{as_html(title)}</h1>\n"
        f"{below}<main>\n{first}\n</main>\n{more}</body>\n</html>\n",
        encoding="utf-8",
    )


def _write_parts(rows: Iterator[tuple[Shown, Said]], folder: Path, root: Path) -> int:
    """Write the remaining rows into numbered scripts, and return their number."""
    for number in count(1):
        figures = _figures(rows, root)
        if not figures:
            return number - 1
        with written_whole(folder / f"{number}.js") as temporary:
            temporary.write_text(f"show({_as_script(figures)});\n", encoding="utf-8")
    raise AssertionError


def _as_script(text: str) -> str:
    """Return a string of JavaScript, also inside of HTML."""
    return json.dumps(text).replace("<", "\\u003c")


def _figures(rows: Iterator[tuple[Shown, Said]], root: Path) -> str:
    """Return the HTML of the next rows; empty if there are none."""
    return "\n".join(_figure(picture, said, root) for picture, said in islice(rows, IN_ONE_FILE))


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
