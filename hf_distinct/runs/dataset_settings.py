"""DatasetSettings: which captioned pictures a recipe reads, and which models fit them; help that recipes share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import logging

from hf_distinct.data import ensure_splits, load_captions
from hf_distinct.distributed.nodes import once_per_node
from hf_distinct.files.model_names import SHIPPED, is_shipped, shipped, shipped_or_named
from hf_distinct.text.problems import refuse

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.get_logger(__name__)

EMOJI_SETTINGS = ("train_size", "scenes_seed", "caption_style", "curriculum_steps", "curriculum_nouns")
"""Settings of recipes that choose emoji scenes, and have no effect on other pictures."""
CLIP_FORMS = "an open_clip NAME:TAG such as ViT-B-32:openai, a folder, hf-hub:ID, or the name of a shipped model"
"""What a setting that names a CLIP takes."""
CAPTIONER_FORMS = "a folder, a Hub id, or the name of a shipped model"
"""What a setting that names a captioner takes."""
MODELS = {
    "model_name_or_path": f"a captioner: {CAPTIONER_FORMS}",
    "scorer": f"a CLIP: {CLIP_FORMS}",
    "judge": f"another CLIP: {CLIP_FORMS}",
}
"""What each setting that names a model takes."""
HELP = {
    "image_root": "Folder of the pictures that --dataset names. Files outside of it are refused; / allows any file.",
    "train_size": "Number of emoji scenes to train on.",
    "scenes_seed": "Seed of the emoji scenes.",
    "caption_style": "Style of the captions of emoji scenes: as people write, more detailed, or full with all six "
    "facts of a scene.",
    "split": "Split to measure on. Choose settings on `validation`, and report figures of `test`.",
    "judge": f"A second CLIP that measures retrieval and that no training sees: {CLIP_FORMS}. Default: the shipped "
    "`judge` for emoji scenes, none for other pictures.",
    "test_size": "Number of pictures of --split to measure on, at most.",
    "validation_size": "Number of validation pictures to measure on, at most.",
    "captions_per_image": "Number of captions of each image in a step, at most.",
    "num_workers": "Number of worker processes that read pictures, for each process of the run.",
    "per_device_train_batch_size": "Number of images per step, for each process of the run.",
    "learning_rate": "Peak learning rate.",
    "warmup_steps": "Number of first steps in which the learning rate rises to its peak.",
    "weight_decay": "Weight decay of AdamW.",
    "caption_batch_size": "Number of pictures that are captioned at a time.",
    "seed": "Seed of the sampled captions.",
}
"""The help of settings that several recipes have."""


@dataclass
class DatasetSettings:
    """Which captioned pictures to read; the settings of a recipe inherit from it.

    Raises:
        ValueError: a setting has no effect on this dataset: it says how to read pictures, but emoji scenes are drawn,
            or it chooses emoji scenes, but the dataset is another one.
    """

    dataset: str = field(
        default="emoji_scenes",
        metadata={
            "help": "Captioned pictures: a COCO or Karpathy JSON, a CSV or JSONL file, a folder, WebDataset shards, "
            "or a dataset that `datasets` loads, by path or Hub id. `emoji_scenes` are small pictures of emoji with "
            "captions, which hf_distinct draws itself."
        },
    )
    image_root: str | None = field(default=None, metadata={"help": HELP["image_root"]})
    image_column: str | None = field(
        default=None, metadata={"help": "Column of the pictures. Default: the one with a usual name, such as image."}
    )
    caption_column: str | None = field(
        default=None,
        metadata={
            "help": "Column or key of the captions, or COLUMN.FIELD if each caption is a struct. Default: the one "
            "with a usual name, such as captions."
        },
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
                raise ValueError(f"--{name} has no effect on emoji scenes, which are drawn: set --dataset too.")
        defaults = {each.name: each.default for each in fields(self)}
        for name in EMOJI_SETTINGS:
            if not self.drawn and name in defaults and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"--{name} chooses emoji scenes and has no effect on --dataset {self.dataset}: leave it out."
                )

    @property
    def drawn(self) -> bool:
        """Whether the dataset is the emoji scenes, whose splits and sizes each recipe chooses."""
        return self.dataset == "emoji_scenes"

    def load(self) -> DatasetDict:
        """Read the splits train, validation and test of a dataset other than the emoji scenes.

        The first process of each node reads them for all processes of the node.

        Raises:
            FileNotFoundError, ValueError: see :func:`hf_distinct.data.load_captions` and
                :func:`hf_distinct.data.ensure_splits`.
        """
        chosen = (self.image_root, self.strict, self.image_column, self.caption_column, self.dataset_config)
        return once_per_node(lambda: ensure_splits(load_captions(self.dataset, *chosen)))

    def models(self, needed: Mapping[str, str], optional: Mapping[str, str] | None = None) -> dict[str, str]:
        """Choose the models for these pictures: a folder or a name, by the setting that names it.

        For emoji scenes the default is a shipped model. The shipped models know nothing else: for other pictures there
        is no default, and a shipped model that you name causes a warning.

        Args:
            needed: settings that name a model, each with the shipped model that is its default on emoji scenes.
            optional: the same for models that other pictures can do without. An empty name means none.

        Raises:
            ValueError: see `model_problems`.
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
                f"--{setting} names the shipped model {Path(model).name}, which knows only emoji scenes. Its results "
                f"mean nothing unless {self.dataset} holds such pictures."
            )

    def model_problems(self, needed: Mapping[str, str], optional: Mapping[str, str] | None = None) -> Iterator[str]:
        """A sentence for each problem of the settings that name models; see `models`."""
        missing = [f"--{name} ({MODELS[name]})" for name in needed if not getattr(self, name)]
        if missing and not self.drawn:
            yield (
                f"--dataset {self.dataset} needs {' and '.join(missing)}: the models that hf_distinct ships know only "
                "emoji scenes."
            )
        for name in (*needed, *(optional or ())):
            value = getattr(self, name)
            if value and shipped_or_named(value) != value and Path(value).is_dir():
                yield (
                    f"--{name} {value} is both a folder here and the name of a shipped model: write ./{value} for the "
                    f"folder, or {SHIPPED / value} for the shipped model."
                )
