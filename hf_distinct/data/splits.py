"""Held-out splits for sources that bring none."""

from __future__ import annotations

from datasets import DatasetDict

from hf_distinct.data.hashing import stable_hash

MIN_IMAGES = 4


def ensure_splits(splits: DatasetDict, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> DatasetDict:
    """Carve validation and test splits out of "train" if it is the only split; else return `splits` as it is.

    Images are ranked by a hash of their id and the seed, so that the outcome depends neither on the order of the rows
    nor on the machine. Rows of the same image id stay together.

    Args:
        splits: Data sets with a column `image_id`.
        validation: Share of the images for validation; at least one image.
        test: Share of the images for test; at least one image.
        seed: Another seed gives other splits.

    Returns:
        Splits train, validation and test, each in the order of the original rows.

    Raises:
        ValueError: Fewer than 4 images, or shares that are not positive or leave nothing to train on.
    """
    if set(splits) != {"train"}:
        return splits
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(f"validation={validation} and test={test} should be above 0 and below 1 together.")
    image_ids = list(splits["train"]["image_id"])
    ranked = sorted(set(image_ids), key=lambda image_id: (stable_hash(f"{seed}:{image_id}"), image_id))
    if len(ranked) < MIN_IMAGES:
        raise ValueError(f"{len(ranked)} images are too few for train, validation and test: at least {MIN_IMAGES}.")
    num_validation = max(1, round(validation * len(ranked)))
    num_test = max(1, round(test * len(ranked)))
    if num_validation + num_test >= len(ranked):
        raise ValueError(f"validation={validation} and test={test} leave none of {len(ranked)} images to train on.")
    held_out = dict.fromkeys(ranked[:num_validation], "validation")
    held_out |= dict.fromkeys(ranked[num_validation : num_validation + num_test], "test")
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for row, image_id in enumerate(image_ids):
        rows[held_out.get(image_id, "train")].append(row)
    return DatasetDict({name: splits["train"].select(members) for name, members in rows.items()})
