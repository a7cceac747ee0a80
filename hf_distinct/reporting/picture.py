"""Scale images and embed them in HTML, so that the file needs no other files."""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

from hf_distinct.data.images import to_rgb
from hf_distinct.text.escaping import as_html


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Return the image in RGB, scaled so that its longer side is `size` pixels.

    A small image is first enlarged by repeating pixels, so that it stays sharp.
    """
    image = to_rgb(image)
    longest = max(image.size)
    if longest < size:
        factor = -(-size // longest)
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        longest *= factor
    if longest == size:
        return image
    target = (max(1, round(image.width * size / longest)), max(1, round(image.height * size / longest)))
    return image.resize(target, Image.Resampling.LANCZOS)


def embedded_image(image: Image.Image, size: int, description: str, quality: int | None = None) -> str:
    """Return an HTML image, `size` pixels on its longer side, with embedded data: lossless, or JPEG of a `quality`."""
    fitted = fit_image(image, size)
    buffer = BytesIO()
    kind = "png" if quality is None else "jpeg"
    fitted.save(buffer, format=kind, optimize=True, **({} if quality is None else {"quality": quality}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img width="{fitted.width}" height="{fitted.height}" alt="{as_html(description)}" '
        f'src="data:image/{kind};base64,{data}">'
    )
