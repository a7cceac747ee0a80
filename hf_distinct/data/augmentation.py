"""Random views of pictures, which depend on nothing but a key: the same in any process, worker or resumed run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from hf_distinct.data.hashing import stable_hash

RATIO = 3 / 4, 4 / 3  # width over height of the part that is cut out
COLOUR = 0.2


@dataclass(frozen=True)
class Augmentation:
    """Cuts out a random part of a picture, mirrors every second one, and varies brightness, contrast and saturation.

    Args:
        crop: least and greatest area of the part, as fractions of the picture's.
        size: side of the square that the part is scaled to; None: the picture's own size.
    """

    crop: tuple[float, float]
    size: int | None = None

    def __call__(self, image: Image.Image, key: str) -> Image.Image:
        """Return the view that belongs to a key, such as seed, epoch and image id.

        Args:
            image: RGB.
            key: two views of one key are the same.
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
