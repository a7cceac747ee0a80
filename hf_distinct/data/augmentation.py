"""Random views of images that depend only on a key, so they are equal in any process, worker or resumed run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from hf_distinct.data.hashing import stable_hash

RATIO = 3 / 4, 4 / 3  # range of the crop's aspect ratio, width / height
COLOUR = 0.2


@dataclass(frozen=True)
class Augmentation:
    """Crops a random part of an image, flips every second one, and varies brightness, contrast and saturation.

    Args:
        crop: minimum and maximum area of the crop, as fractions of the image's area.
        size: side of the square that the crop is resized to; None keeps the image's size.
    """

    crop: tuple[float, float]
    size: int | None = None

    def __call__(self, image: Image.Image, key: str) -> Image.Image:
        """Return the view for a key, such as seed, epoch and image id.

        Args:
            image: RGB.
            key: equal keys give equal views.
        """
        from torchvision.transforms import v2  # here, for it takes a second

        size = (self.size, self.size) if self.size else (image.height, image.width)
        view = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=self.crop, ratio=RATIO),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(COLOUR, COLOUR, COLOUR),
            ]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_hash(key))
            return view(image)
