"""Finding and decoding pictures: with the pixels that `pipeline("image-to-text")` sees, and one kind of error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from PIL import Image
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
# What RGB cannot hold.
SEE_THROUGH = "transparent picture (what lies under its transparent pixels shows, often black)"
DEEP = "grey picture of more than 8 bits (values are cut off at 0 and 255, fractions are lost)"
MANY = "animated or multi-page picture (the first one is seen)"


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
        levels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        cut_off = levels.size > 0 and bool(levels.min() < 0 or levels.max() > 255)
        return DEEP if cut_off or 0 < levels.max(initial=0) <= 1 else None
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # PIL knows no other way from La
        lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
        return SEE_THROUGH if isinstance(lowest, int) and lowest < 255 else None
    # Phones save JPEGs with a second picture (MPO) of depth or brightness, which nobody misses.
    return MANY if image.format != "MPO" and _has_frames(image) else None


def _has_frames(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # the second one is broken: the first one, which is all that is seen, may be whole
        return True


def decode_image(value: Any) -> Image.Image:
    """Decode one value of a `datasets.Image` column, decoded already or not, to RGB.

    The pixels are those that `pipeline("image-to-text")` sees, see `to_rgb`. Pictures that PIL warns about as
    decompression bombs (over `PIL.Image.MAX_IMAGE_PIXELS`) are refused, and so are those over `MAX_ASPECT_RATIO` times
    longer than wide, and those of 1 or 3 pixels in height, which image processors mistake for another form of picture.

    Args:
        value: A PIL picture, or `{"bytes": ..., "path": ...}` as a column cast to `Image(decode=False)` holds it. The
            path may be one of fsspec (`zip://a.jpg::photos.zip`, `https://...`).

    Returns:
        A loaded picture of mode RGB.

    Raises:
        ImageError: Missing, truncated, not a picture, too large, too narrow, or in a mode without a way to RGB.
    """
    return _decode(value)[0]


@dataclass
class Decoded:
    """What came of several pictures.

    Attributes:
        images: Those that could be decoded, in order, of mode RGB.
        failures: Why the others could not be, by their place among all.
        losses: What of a picture RGB cannot hold (see `lost_in_rgb`), by its place among all.
    """

    images: list[Image.Image] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    losses: dict[int, str] = field(default_factory=dict)


def decode_images(values: Iterable[Any]) -> Decoded:
    """Decode what `decode_image` takes; a picture that cannot be decoded is a failure with a reason, not an error."""
    found = Decoded()
    for place, value in enumerate(values):
        try:
            image, lost = _decode(value)
        except ImageError as error:
            found.failures[place] = str(error)
            continue
        found.images.append(image)
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
            f'{source}: pictures lose something in RGB, here as in pipeline("image-to-text"): {counted.summary()}. '
            "Convert them to 8-bit RGB yourself to choose what is seen."
        )


def to_pixel_values(images: Sequence[Image.Image], image_processor: BaseImageProcessor) -> Tensor:
    """Prepare RGB pictures for a captioner, as the pipeline does: `pixel_values` (B, 3, H, W), float32."""
    return image_processor(images=list(images), return_tensors="pt")["pixel_values"].float()


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
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(_file(path) if content is None else BytesIO(content)) as image:
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
        raise ValueError(f"more than the limit of {MAX_FETCHED_BYTES} bytes (MAX_FETCHED_BYTES)")
    return BytesIO(content)


def _convert(image: Image.Image) -> tuple[Image.Image, str | None]:
    converted = to_rgb(image)
    width, height = converted.size
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")
    if height in AMBIGUOUS_HEIGHTS:
        raise ValueError(
            f"{width} x {height} pixels: image processors take a height of {height} for colour channels. Enlarge it"
        )
    return converted, lost_in_rgb(image)
