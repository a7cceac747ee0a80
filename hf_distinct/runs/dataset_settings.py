"""DatasetSettings: which captioned pictures a recipe reads, and which models fit them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from hf_distinct.data import ensure_splits, load_captions
from hf_distinct.files.model_names import SHIPPED, is_shipped, shipped, shipped_or_named
from hf_distinct.text.problems import refuse

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.get_logger(__name__)

EMOJI_SETTINGS = ("train_size", "scenes_seed", "caption_style", "curriculum_steps", "curriculum_nouns")
"""Settings of recipes that choose emoji scenes, and mean nothing for pictures that are read."""
MODELS = {
    "model_name_or_path": "the captioner, a folder or a Hub id of a VisionEncoderDecoderModel",
    "scorer": "a CLIP: an open_clip NAME:TAG such as ViT-B-32:openai, a folder, or hf-hub:ID",
    "judge": "another CLIP, in the same forms",
}
"""What the settings that name a model take."""


@dataclass
class DatasetSettings:
    """Which captioned pictures; a recipe's own settings inherit from it.

    Raises:
        ValueError: if a setting says how to read pictures and the dataset is emoji scenes, which are drawn; or if one
            chooses emoji scenes and the dataset is read.
    """

    dataset: str = field(
        default="emoji_scenes",
        metadata={
            "help": "What to read: emoji_scenes, or captioned pictures in any form that recipes/README.md lists."
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the pictures that --dataset names. Nothing outside of it is read; / allows any place."
        },
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column that holds the pictures, if it is not called image."}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "Column or key that holds the captions, or COLUMN.FIELD if they are structs."}
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a dataset that has several, for example one for each language."},
    )
    strict: bool = field(
        default=False, metadata={"help": "Stop with an error at the first bad row instead of leaving it out."}
    )

    def __post_init__(self) -> None:
        for name in ("image_root", "image_column", "caption_column", "dataset_config"):
            if self.drawn and getattr(self, name) is not None:
                raise ValueError(f"{name} says how to read pictures, but emoji_scenes are drawn: give --dataset too.")
        defaults = {each.name: each.default for each in fields(self)}
        for name in EMOJI_SETTINGS:
            if not self.drawn and name in defaults and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} chooses emoji scenes, but --dataset {self.dataset} is read: leave it out.")

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

    def models(self, needed: Mapping[str, str], optional: Mapping[str, str] | None = None) -> dict[str, str]:
        """Which models fit these pictures: a folder or a name, by the setting that names it.

        For emoji scenes a shipped model is used if you name none. It knows nothing else: for other pictures only those
        models are used that you name, and a shipped one among them causes a warning.

        Args:
            needed: settings that name a model, each with the shipped model (e.g. ``"scorer"``) it means by default.
            optional: the same for models that other pictures can do without. An empty name means none.

        Raises:
            ValueError: as `model_problems` says.
        """
        refuse(self.model_problems(needed, optional))
        found = {}
        for name, by_default in {**needed, **(optional or {})}.items():
            value = getattr(self, name)
            if value:
                found[name] = shipped_or_named(value)
            elif self.drawn and (value is None or name in needed):
                found[name] = shipped(by_default)
            if name in found:
                self.warn_if_shipped(name, found[name])
        return found

    def warn_if_shipped(self, setting: str, model: str) -> None:
        """Log a warning if a setting names a model that hf_distinct ships, and the pictures are no emoji scenes."""
        if not self.drawn and is_shipped(model):
            logger.warning(
                f"--{setting} names the shipped model {Path(model).name}, which knows emoji scenes only: unless "
                f"{self.dataset} holds such pictures, its results mean nothing."
            )

    def model_problems(self, needed: Mapping[str, str], optional: Mapping[str, str] | None = None) -> Iterator[str]:
        """What is wrong with the settings that name models, one sentence each; see `models`."""
        missing = [f"--{name} ({MODELS[name]})" for name in needed if not getattr(self, name)]
        if missing and not self.drawn:
            yield (
                f"The models that hf_distinct ships know emoji scenes only; for --dataset {self.dataset} name "
                f"{' and '.join(missing)}."
            )
        for name in (*needed, *(optional or ())):
            value = getattr(self, name)
            if value and shipped_or_named(value) != value and Path(value).is_dir():
                yield (
                    f"--{name} {value} is a folder here and also the name of a model that hf_distinct ships: write "
                    f"./{value} for the folder, or {SHIPPED / value} for the other."
                )
