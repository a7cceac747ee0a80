"""Find and decode images, with the same pixels as `pipeline("image-to-text")` and a single error type."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from PIL import Image, UnidentifiedImageError
from transformers.image_utils import load_image
from transformers.utils import logging

from hf_distinct.data.skips import Skips

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BaseImageProcessor

logger = logging.get_logger(__name__)

# An image 1 pixel wide and 60,000 high is small on disk, but resizing its shorter edge to 224 would take gigabytes.
MAX_ASPECT_RATIO = 200
# For an image in an archive or at a URL: a zip file of 1 MB can expand to 1 GB.
MAX_FETCHED_BYTES = 256 << 20
# Image processors mistake a height of 1 or 3 for colour channels, and fail or misread the image.
AMBIGUOUS_HEIGHTS = (1, 3)
# Untrusted files only reach these decoders of PIL: some others start programs (EPS), and rare ones are little tested.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF")
SCALE_DOWN = "Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
# What is lost in RGB.
SEE_THROUGH = "transparent image (the colour under its transparent pixels shows, often black)"
DEEP = "grey image of more than 8 bits (values are clipped at 0 and 255, fractions are lost)"
MANY = "animated or multi-page image (only the first frame is used)"


class ImageError(ValueError):
    """An image that cannot be decoded; the message says why and, if known, names the file."""


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, that have a file extension of an image in `FORMATS`.

    Raises:
        ValueError: it is not a folder, or contains no images.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder")
    endings = picture_endings()
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    found = [path for path in files if path.suffix.lower() in endings]
    if not found:
        raise ValueError(f"{folder} contains no images: none of its {len(files)} files has an image file extension")
    if len(found) < len(files):
        logger.info(f"{folder}: {len(found)} of {len(files)} files have an image file extension")
    return found


def picture_endings() -> set[str]:
    """Return the file extensions of the images in `FORMATS`, in lower case and with their dot."""
    readable = _readable_formats()
    return {ending for ending, kind in Image.registered_extensions().items() if kind in readable}


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, as `pipeline("image-to-text")` does.

    A captioner must be trained on the pixels that it gets in use, so this is the pipeline's own conversion
    (`transformers.image_utils.load_image`): the image is rotated by its EXIF orientation, then converted by PIL. PIL
    drops transparency, which reveals the colour of transparent pixels, and clips grey values of 16 or 32 bits and
    floats at 0 and 255. `lost_in_rgb` tells if this loses information.

    Args:
        image: an image of any mode and size.

    Returns:
        An image of mode RGB.

    Raises:
        ValueError: this version of PIL cannot convert the mode to RGB.
    """
    return load_image(image)


def lost_in_rgb(image: Image.Image) -> str | None:
    """Return what `to_rgb` loses of an image (`SEE_THROUGH`, `DEEP` or `MANY`); None if nothing relevant."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        # fmin and fmax ignore NaN. A copy of the values would take several times the memory of the image.
        lowest, highest = np.fmin.reduce(levels, axis=None), np.fmax.reduce(levels, axis=None)
        return DEEP if lowest < 0 or highest > 255 or 0 < highest <= 1 else None
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # PIL has no other conversion of La
        alpha = image if "A" in image.getbands() else image.convert("RGBA")
        least = alpha.getchannel("A").getextrema()[0]
        return SEE_THROUGH if isinstance(least, int) and least < 255 else None
    # Phones save JPEGs with a second image (MPO) of depth or brightness, which is not needed.
    return MANY if image.format != "MPO" and _has_frames(image) else None


def _has_frames(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # the second frame is broken, but only the first one is used
        return True


def decode_image(value: Any) -> Image.Image:
    """Decode a value of a `datasets.Image` column, already decoded or not, to RGB.

    The pixels are those of `pipeline("image-to-text")`, see `to_rgb`. These images are rejected before they are
    decoded: more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, formats not in `FORMATS`, an aspect ratio above
    `MAX_ASPECT_RATIO`, and a height of 1 or 3 pixels, which image processors mistake for colour channels.

    Args:
        value: a PIL image, or `{"bytes": ..., "path": ...}` as in a column cast to `Image(decode=False)`. The path may
            be an fsspec URL (`zip://a.jpg::photos.zip`, `https://...`).

    Returns:
        A loaded image of mode RGB.

    Raises:
        ImageError: the image is missing, truncated, not an image, in another format, too large, too narrow, or in a
            mode that cannot be converted to RGB.
    """
    return _decode(value)[0]


@dataclass
class Decoded:
    """The result of decoding several images.

    Attributes:
        images: the prepared images, in order, without those that cannot be decoded.
        failures: why an image cannot be decoded, by its index among all.
        losses: what an image loses in RGB (see `lost_in_rgb`), by its index among all.
    """

    images: list[Any] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    losses: dict[int, str] = field(default_factory=dict)


def decode_images(values: Iterable[Any], prepare: Callable[[Image.Image], Any]) -> Decoded:
    """Decode images one by one, and keep only the prepared results.

    A batch of large photographs would fill the memory, but the model's inputs are small. An image that cannot be
    decoded is recorded as a failure with a reason; no error is raised.

    Args:
        values: inputs of `decode_image`.
        prepare: turns an RGB image into the result to keep, for example the pixels for a model.
    """
    found = Decoded()
    for place, value in enumerate(values):
        try:
            image, lost = _decode(value)
        except ImageError as error:
            found.failures[place] = str(error)
            continue
        found.images.append(prepare(image))
        if lost is not None:
            found.losses[place] = lost
    return found


def warn_of_losses(source: str, losses: Iterable[tuple[str, str]]) -> None:
    """Log one warning about images that lose information in RGB, if there are any.

    Args:
        source: what is being read; the message begins with it.
        losses: name of each image, and the result of `lost_in_rgb`.
    """
    counted = Skips(source)
    for name, lost in losses:
        counted.add(lost, name)
    if counted.names:
        logger.warning(
            f'{source}: images lose information in RGB, as they do in pipeline("image-to-text"): {counted.summary()}. '
            "To choose what is kept, convert them to 8-bit RGB yourself."
        )


def to_pixel_values(images: Sequence[Image.Image], image_processor: BaseImageProcessor, **settings: Any) -> Tensor:
    """Preprocess RGB images for a captioner, as the pipeline does: `pixel_values` (B, 3, H, W), float32.

    `settings` override the image processor's own (`do_resize=False` ...).
    """
    return image_processor(images=list(images), return_tensors="pt", **settings)["pixel_values"].float()


def decode_pixels(values: Iterable[Any], image_processor: BaseImageProcessor) -> Decoded:
    """Decode images for a captioner one by one: `images` are `pixel_values` (3, H, W), float32."""
    return decode_images(values, lambda image: to_pixel_values([image], image_processor)[0])


def _decode(value: Any) -> tuple[Image.Image, str | None]:
    """Return the image, and what it loses in RGB."""
    place = "image"
    try:
        if value is None:
            raise ValueError("the row has no image (null)")
        if isinstance(value, Image.Image):
            return _convert(value)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} is not an image: pass a path, or PIL.Image.fromarray(array)")
        path, content = value.get("path"), value.get("bytes")
        place = f"image {path!r}" if path else "image stored as bytes"
        source = _file(path) if content is None else BytesIO(content)
        with warnings.catch_warnings():
            # `_check` reports this; PIL itself raises an error for images twice as large.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _open(source) as image:
                return _convert(image)
    # PIL's decoders raise almost any type of error on broken data (OSError, SyntaxError, struct.error, IndexError).
    # In any case the image is unusable, and the caller needs its name.
    except Exception as error:
        raise ImageError(f"{place} cannot be decoded: {type(error).__name__}: {error}") from error


def _file(path: str | None) -> Any:
    """Return a path or a file that PIL can open."""
    if path is None:
        raise ValueError("neither bytes nor a path are given")
    if "://" not in path:
        return path
    with fsspec.open(path, "rb") as file:
        content = file.read(MAX_FETCHED_BYTES + 1)
    if len(content) > MAX_FETCHED_BYTES:
        raise ValueError(f"the file has more than {MAX_FETCHED_BYTES} bytes, the maximum size of an image file")
    return BytesIO(content)


def _readable_formats() -> list[str]:
    """Return the `FORMATS` that this installation of PIL supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(source: Any) -> Image.Image:
    """Read the header of a file; raises ValueError with the format's name if it is not in `FORMATS`."""
    try:
        return Image.open(source, formats=_readable_formats())
    except Image.DecompressionBombError as error:
        raise ValueError(f"{str(error).rstrip('.')}. {SCALE_DOWN}") from error
    except UnidentifiedImageError as error:
        with source if isinstance(source, BytesIO) else open(source, "rb") as file:
            file.seek(0)
            start = file.read(16)
        for name, (_, accepts) in Image.OPEN.items():
            if name not in FORMATS and accepts and len(start) == 16 and accepts(start) is True:
                raise ValueError(_other_format(name)) from error
        raise


def _other_format(name: str) -> str:
    return f"the format {name} is not supported. Convert the image to PNG or JPEG"


def _check(image: Image.Image) -> None:
    """Check an image before it is decoded; raises ValueError."""
    width, height = image.size
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(
            f"{width} x {height} pixels are more than {most}, it could be a decompression bomb. {SCALE_DOWN}"
        )
    if image.format is not None and image.format not in FORMATS:
        raise ValueError(_other_format(image.format))


def _convert(image: Image.Image) -> tuple[Image.Image, str | None]:
    _check(image)
    converted = to_rgb(image)
    width, height = converted.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
    if height in AMBIGUOUS_HEIGHTS:
        raise ValueError(
            f"{width} x {height} pixels: image processors mistake a height of {height} for colour channels. Enlarge it"
        )
    return converted, lost_in_rgb(image)
