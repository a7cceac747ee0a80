"""Held-out splits for sources that lack them."""

from __future__ import annotations

import numpy as np
from datasets import DatasetDict

from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.selections import column

MIN_IMAGES = 4


def ensure_splits(splits: DatasetDict, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    """Create validation and test splits from "train", if the source does not have them.

    Images are ordered by a hash of their id and the seed, so the result depends neither on the order of the rows nor
    on the machine. Rows with the same image id stay together.

    Args:
        splits: datasets with a column `image_id`.
        validation: fraction of the images for validation; at least one image.
        test: fraction of the images for test; at least one image.
        seed: determines the splits.

    Returns:
        Splits train, validation and test, each in the order of the original rows; `splits` itself if it has all three.

    Raises:
        ValueError: no train split, fewer than 4 images, or fractions that are not positive or leave no images to
            train.
    """
    if "train" not in splits:
        raise ValueError(f"There are no images to train on, only the splits {', '.join(splits)}: mark some as train.")
    missing = {name: share for name, share in (("validation", validation), ("test", test)) if name not in splits}
    if not missing:
        return splits
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"validation={validation} and test={test} should be above 0, and their sum below 1.")
    hashes = np.fromiter(
        (stable_hash(f"{seed}:{image_id}") for image_id in column(splits["train"], "image_id")), dtype=np.int64
    )
    ranked = np.unique(hashes)  # one for each image
    if len(ranked) < MIN_IMAGES:
        raise ValueError(f"{len(ranked)} images are too few for train, validation and test: at least {MIN_IMAGES}.")
    ends = np.cumsum([max(1, round(share * len(ranked))) for share in missing.values()])
    if ends[-1] >= len(ranked):
        raise ValueError(f"validation={validation} and test={test} leave none of {len(ranked)} images to train on.")
    places = np.searchsorted(ranked, hashes)
    parts = np.searchsorted(ends, places, side="right")  # 0: the first that is missing, ..., the last: train
    rows = {name: np.flatnonzero(parts == part) for part, name in enumerate([*missing, "train"])}
    carved = {name: splits["train"].select(members) for name, members in rows.items()}
    return DatasetDict({name: carved.get(name, splits.get(name)) for name in ("train", "validation", "test")})
