"""A contrast sheet: images, their most similar images, and a captioner's captions before and after training.

It is written as an HTML file that contains its images, and as a PNG for a slide. Results are shown by marks and words;
colour only repeats them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hf_distinct.reporting.contrast_rows import (
    FOUND_COLOUR,
    IMAGE_SIZE,
    LEGEND,
    MISSED_COLOUR,
    SIMILAR_IN_COLUMN,
    SIMILAR_SIZE,
    ContrastRow,
)
from hf_distinct.reporting.picture import embedded_image
from hf_distinct.text.escaping import as_html


def write_contrast_sheet(
    rows: Sequence[ContrastRow],
    html_path: str | os.PathLike[str],
    png_path: str | os.PathLike[str],
    title: str = "Captions before and after",
    subtitle: str = "",
) -> None:
    """Write a contrast sheet as one HTML file, images included, and as one PNG, 1600 pixels wide.

    Text is wrapped, never cut off, and escaped in the HTML. The PNG uses DejaVu Sans, which lacks some scripts (such
    as Chinese); the HTML uses the browser's fonts.

    Args:
        rows: the images, in display order; about four fill a slide.
        html_path: the HTML file to write; its folder is created if needed.
        png_path: the PNG file to write; its folder is created if needed.
        title: the heading.
        subtitle: a line below it, such as the data, the model and the scorer; may be empty.

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
