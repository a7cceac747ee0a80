"""DatasetSettings: the settings by which every recipe is told its captioned pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_distinct.data import ensure_splits, load_captions

if TYPE_CHECKING:
    from datasets import DatasetDict


@dataclass
class DatasetSettings:
    """Which captioned pictures; a recipe's own settings inherit from it.

    Raises:
        ValueError: a setting that says how to read pictures, beside the emoji scenes, which are drawn.
    """

    dataset: str = field(
        default="emoji_scenes",
        metadata={"help": "emoji_scenes, or captioned pictures in any form that recipes/README.md lists."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the pictures, for a JSON dataset."})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the pictures, for a dataset with any."}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "Column or key of the captions, or COLUMN.FIELD where they are structs."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Which configuration of a dataset that has several, such as languages."}
    )
    strict: bool = field(default=False, metadata={"help": "Stop at the first bad row instead of leaving it out."})

    def __post_init__(self) -> None:
        for name in ("image_root", "image_column", "caption_column", "dataset_config"):
            if self.drawn and getattr(self, name) is not None:
                raise ValueError(f"{name} says how to read pictures, but emoji_scenes are drawn: give --dataset too.")

    @property
    def drawn(self) -> bool:
        """Whether these are the emoji scenes, whose splits and sizes each recipe chooses."""
        return self.dataset == "emoji_scenes"

    def load(self) -> DatasetDict:
        """The splits train, validation and test of a dataset that is read.

        Raises:
            FileNotFoundError, ValueError: as :func:`hf_distinct.data.load_captions` and
                :func:`hf_distinct.data.ensure_splits` say.
        """
        return ensure_splits(
            load_captions(
                self.dataset, self.image_root, self.strict, self.image_column, self.caption_column, self.dataset_config
            )
        )
