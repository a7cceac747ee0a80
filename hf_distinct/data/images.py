"""Finding and decoding pictures: any mode that PIL reads becomes RGB, and any failure becomes one kind of error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from transformers.utils import logging

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BaseImageProcessor

logger = logging.get_logger(__name__)

# A picture 1 pixel wide and 60,000 high is harmless on disk, but scaling its shorter edge to 224 would take gigabytes.
MAX_ASPECT_RATIO = 200


class ImageError(ValueError):
    """A picture that cannot be decoded; the message says why and, where known, names the file."""


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files in a folder and below it, by path, whose names end like those of pictures that PIL reads.

    Raises:
        ValueError: It is no folder, or holds none.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder")
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    found = [path for path in files if path.suffix.lower() in endings]
    if not found:
        raise ValueError(f"{folder} holds no pictures: of {len(files)} files, none has a name that ends like one")
    if len(found) < len(files):
        logger.info(f"{folder}: of {len(files)} files, {len(found)} have names that end like pictures")
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB.

    Transparent pictures (RGBA, LA, palettes and others with a transparent colour) are laid on white: a plain
    `convert("RGB")` would show whatever colour hides under the transparent pixels, most often black. Grey pictures of
    16 bits are scaled to 8, where `convert` would clip. For 32-bit integers and floats the file does not say what
    white is: it is taken as the smallest of 1 (floats only), 255 and 65535 that no pixel exceeds, else as the largest
    pixel.

    Args:
        image: A picture of any mode and size, 1 x 1 included.

    Returns:
        A picture of mode RGB and the same size; the same object if it was RGB without transparency.

    Raises:
        ValueError: This version of PIL knows no way from this mode to RGB.
    """
    if image.mode.startswith("I;16"):
        return _scale_grey(image, white=65535.0)
    if image.mode in ("I", "F"):
        peak = float(np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0).max())
        whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        return _scale_grey(image, white=next((white for white in whites if peak <= white), peak))
    if image.has_transparency_data:
        if image.mode == "La":  # PIL undoes the premultiplied alpha only on the way to LA
            image = image.convert("LA")
        image = image.convert("RGBA")
        white_canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white_canvas, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scale_grey(image: Image.Image, white: float) -> Image.Image:
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=white, neginf=0.0) / white
    return Image.fromarray((pixels.clip(0.0, 1.0) * 255).round().astype(np.uint8)).convert("RGB")


def decode_image(value: Image.Image | dict[str, Any] | None) -> Image.Image:
    """Decode one value of a `datasets.Image` column, decoded already or not, to RGB.

    Like `datasets`, it turns the picture upright by its EXIF orientation. Pictures that PIL warns about as
    decompression bombs (over `PIL.Image.MAX_IMAGE_PIXELS`) are refused, and so are those over `MAX_ASPECT_RATIO` times
    longer than wide.

    Args:
        value: A PIL picture, or `{"bytes": ..., "path": ...}` as a column cast to `Image(decode=False)` holds it.

    Returns:
        A loaded picture of mode RGB.

    Raises:
        ImageError: Missing, truncated, not a picture, too large, or in a mode without a way to RGB.
    """
    place = "image"
    try:
        if value is None:
            raise ValueError("the row has no image (null)")
        if isinstance(value, Image.Image):
            image = value
        else:
            path, content = value.get("path"), value.get("bytes")
            place = f"image {path!r}" if path else "image stored as bytes"
            image = _open_upright(path if content is None else BytesIO(content))
        _check_aspect_ratio(image)
        return to_rgb(image)
    # PIL's decoders raise nearly anything on broken data (OSError, SyntaxError, struct.error, IndexError, ...):
    # whatever it is, the picture is unusable and the caller needs to know which one.
    except Exception as error:
        raise ImageError(f"{place} cannot be decoded: {type(error).__name__}: {error}") from error


def to_pixel_values(images: Sequence[Image.Image], image_processor: BaseImageProcessor) -> Tensor:
    """Prepare RGB pictures of any size for a captioner: `pixel_values` (B, 3, H, W), float32."""
    # Image processors take a side of 1 or 3 pixels for the colour channels. Enlarging loses nothing.
    images = [
        image if min(image.size) >= 4 else image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST)
        for image in images
    ]
    return image_processor(images=images, return_tensors="pt")["pixel_values"].float()


def _open_upright(file: Any) -> Image.Image:
    if file is None:
        raise ValueError("neither bytes nor a path are given")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as image:
            image.load()
            return ImageOps.exif_transpose(image)


def _check_aspect_ratio(image: Image.Image) -> None:
    width, height = image.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
