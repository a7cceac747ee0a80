"""Finding and decoding pictures: with the pixels that `pipeline("image-to-text")` sees, and one kind of error."""

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

# A picture 1 pixel wide and 60,000 high is harmless on disk, but scaling its shorter edge to 224 would take gigabytes.
MAX_ASPECT_RATIO = 200
# Of a picture in an archive, or at an address: a zip of 1 MB unpacks to 1 GB.
MAX_FETCHED_BYTES = 256 << 20
# Image processors take a height of 1 or 3 for the colour channels, and fail or see another picture.
AMBIGUOUS_HEIGHTS = (1, 3)
# No other decoder of PIL sees what strangers made: some start programs (EPS), and rare ones are little tested.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF")
SCALE_DOWN = "Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
# What RGB cannot hold.
SEE_THROUGH = "transparent picture (the colour under its transparent pixels shows, often black)"
DEEP = "grey picture of more than 8 bits (values are cut off at 0 and 255, fractions are lost)"
MANY = "animated or multi-page picture (only the first frame is seen)"


class ImageError(ValueError):
    """A picture that cannot be decoded; the message says why and, where known, names the file."""


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the files in a folder and below it, by path, whose names end like those of pictures in `FORMATS`.

    Raises:
        ValueError: It is no folder, or holds none.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder")
    readable = _readable_formats()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in readable}
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    found = [path for path in files if path.suffix.lower() in endings]
    if not found:
        raise ValueError(f"{folder} holds no pictures: of {len(files)} files, none has the file ending of a picture")
    if len(found) < len(files):
        logger.info(f"{folder}: of {len(files)} files, {len(found)} have the file ending of a picture")
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB, as `pipeline("image-to-text")` does.

    A captioner must learn from the pixels that it sees in use, so this is the pipeline's own conversion
    (`transformers.image_utils.load_image`): the picture is turned upright by its EXIF orientation, then converted by
    PIL. PIL drops transparency, so that whatever colour lies under transparent pixels shows, and cuts grey values of
    16 or 32 bits and floats off at 0 and 255. `lost_in_rgb` says where that loses something.

    Args:
        image: A picture of any mode and size.

    Returns:
        A picture of mode RGB.

    Raises:
        ValueError: This version of PIL knows no way from this mode to RGB.
    """
    return load_image(image)


def lost_in_rgb(image: Image.Image) -> str | None:
    """Say what `to_rgb` loses of a picture (`SEE_THROUGH`, `DEEP` or `MANY`); None if there is nothing to speak of."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        # fmin and fmax leave NaN out. A copy of the levels would take several times the picture.
        lowest, highest = np.fmin.reduce(levels, axis=None), np.fmax.reduce(levels, axis=None)
        return DEEP if lowest < 0 or highest > 255 or 0 < highest <= 1 else None
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # PIL knows no other way from La
        alpha = image if "A" in image.getbands() else image.convert("RGBA")
        least = alpha.getchannel("A").getextrema()[0]
        return SEE_THROUGH if isinstance(least, int) and least < 255 else None
    # Phones save JPEGs with a second picture (MPO) of depth or brightness, which nobody misses.
    return MANY if image.format != "MPO" and _has_frames(image) else None


def _has_frames(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # the second one is broken: the first one, which is all that is seen, may be whole
        return True


def decode_image(value: Any) -> Image.Image:
    """Decode one value of a `datasets.Image` column, decoded already or not, to RGB.

    The pixels are those that `pipeline("image-to-text")` sees, see `to_rgb`. Pictures of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` are refused before they are decoded, and so are those of other formats than `FORMATS`,
    those over `MAX_ASPECT_RATIO` times longer than wide, and those of 1 or 3 pixels in height, which image processors
    mistake for another form of picture.

    Args:
        value: A PIL picture, or `{"bytes": ..., "path": ...}` as a column cast to `Image(decode=False)` holds it. The
            path may be one of fsspec (`zip://a.jpg::photos.zip`, `https://...`).

    Returns:
        A loaded picture of mode RGB.

    Raises:
        ImageError: Missing, truncated, not a picture, of another format, too large, too narrow, or in a mode without a
            way to RGB.
    """
    return _decode(value)[0]


@dataclass
class Decoded:
    """What came of several pictures.

    Attributes:
        images: What was made of those that could be decoded, in order.
        failures: Why the others could not be, by their place among all.
        losses: What of a picture RGB cannot hold (see `lost_in_rgb`), by its place among all.
    """

    images: list[Any] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    losses: dict[int, str] = field(default_factory=dict)


def decode_images(values: Iterable[Any], prepare: Callable[[Image.Image], Any]) -> Decoded:
    """Decode pictures one after the other, and keep of each only what is made of it.

    A batch of large photographs would fill the memory, and what a model sees of them is small. A picture that cannot
    be decoded is a failure with a reason, not an error.

    Args:
        values: What `decode_image` takes.
        prepare: Makes of an RGB picture what is kept, the pixels that a model sees for instance.
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
    """Log one warning of pictures that lose something in RGB, if there are any.

    Args:
        source: What is being read, as the message begins.
        losses: Name of the picture, and what `lost_in_rgb` says of it.
    """
    counted = Skips(source)
    for name, lost in losses:
        counted.add(lost, name)
    if counted.names:
        logger.warning(
            f'{source}: pictures lose something in RGB, as they do in pipeline("image-to-text"): {counted.summary()}. '
            "To choose what is kept, convert them to 8-bit RGB yourself."
        )


def to_pixel_values(images: Sequence[Image.Image], image_processor: BaseImageProcessor, **settings: Any) -> Tensor:
    """Prepare RGB pictures for a captioner, as the pipeline does: `pixel_values` (B, 3, H, W), float32.

    `settings` override the image processor's own (`do_resize=False` ...).
    """
    return image_processor(images=list(images), return_tensors="pt", **settings)["pixel_values"].float()


def decode_pixels(values: Iterable[Any], image_processor: BaseImageProcessor) -> Decoded:
    """Decode pictures for a captioner, one after the other: `images` are `pixel_values` (3, H, W), float32."""
    return decode_images(values, lambda image: to_pixel_values([image], image_processor)[0])


def _decode(value: Any) -> tuple[Image.Image, str | None]:
    """Return the picture, and what RGB cannot hold of it."""
    place = "image"
    try:
        if value is None:
            raise ValueError("the row has no image (null)")
        if isinstance(value, Image.Image):
            return _convert(value)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__} is no picture: give a path, or PIL.Image.fromarray(array)")
        path, content = value.get("path"), value.get("bytes")
        place = f"image {path!r}" if path else "image stored as bytes"
        source = _file(path) if content is None else BytesIO(content)
        with warnings.catch_warnings():
            # `_check` says more of it; of pictures twice as large PIL makes an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with _open(source) as image:
                return _convert(image)
    # PIL's decoders raise nearly anything on broken data (OSError, SyntaxError, struct.error, IndexError, ...):
    # whatever it is, the picture is unusable and the caller needs to know which one.
    except Exception as error:
        raise ImageError(f"{place} cannot be decoded: {type(error).__name__}: {error}") from error


def _file(path: str | None) -> Any:
    """What PIL can open."""
    if path is None:
        raise ValueError("neither bytes nor a path are given")
    if "://" not in path:
        return path
    with fsspec.open(path, "rb") as file:
        content = file.read(MAX_FETCHED_BYTES + 1)
    if len(content) > MAX_FETCHED_BYTES:
        raise ValueError(f"the file has more than {MAX_FETCHED_BYTES} bytes, the most that a picture may have")
    return BytesIO(content)


def _readable_formats() -> list[str]:
    """Those of `FORMATS` that this installation of PIL reads."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _open(source: Any) -> Image.Image:
    """Read the head of a file; raises ValueError that names the format if it is none of `FORMATS`."""
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
    return f"pictures in the format {name} are not read. Convert it to PNG or JPEG"


def _check(image: Image.Image) -> None:
    """See, before it is decoded, that a picture may be; raises ValueError."""
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
