"""Evaluate and predict: write one caption per row of a dataset, on all processes, and measure the captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from numpy import ndarray
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
)

from hf_distinct.captioner import captioner_in, token_id
from hf_distinct.data.images import ImageError
from hf_distinct.data.prepared import names_of
from hf_distinct.distributed.zero3 import generation_ready
from hf_distinct.generation.rollouts import ONE_CAPTION
from hf_distinct.inference.dataset_captions import captions_of, pad_sequences, without_errors, write_sequences

CaptionMetrics = Callable[[list[str], Dataset], dict[str, float]]
SPECIAL_TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def with_special_tokens(config: GenerationConfig, model: PreTrainedModel) -> GenerationConfig:
    """Fill in the special tokens that a generation config lacks from the model's configs."""
    for name in SPECIAL_TOKENS:
        if getattr(config, name, None) is None:
            own = getattr(model.generation_config, name, None)
            setattr(config, name, getattr(model.config, name, None) if own is None else own)
    return config


class DatasetWriter:
    """Captions datasets as evaluations do: with the saved generation config, and ``args.generation_*`` if set.

    Args:
        args: the settings.
        accelerator: gives access to the other processes.
        tokenizer: the captioner's.
        image_processor: the captioner's.
        autocast: creates the context in which the model is called (the Trainer's own).
    """

    def __init__(
        self,
        args: Seq2SeqTrainingArguments,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.args = args
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.autocast = autocast

    def write(self, model: Any, dataset: Dataset, **generation: Any) -> list[Tensor | ImageError]:
        """Return token ids ``(1 + L,)`` of a caption for each row, or its error; in order, on every process.

        Args:
            model: the captioner, wrapped or not.
            dataset: has a column ``image``.
            generation: arguments of ``generate``, which override the settings.

        Raises:
            ValueError: an argument requests several captions or scores.
        """
        a = self.args
        how = {"max_length": a.generation_max_length, "num_beams": a.generation_num_beams} | generation
        how = {name: value for name, value in how.items() if value is not None}
        if refused := [name for name, value in ONE_CAPTION.items() if how.pop(name, value) != value]:
            raise ValueError(f"{', '.join(refused)}: evaluation writes one caption per image, and keeps no scores.")
        longest = how.pop("max_length", None)
        if longest is not None and "max_new_tokens" not in how:
            how["max_new_tokens"] = longest - 1  # overrides one in the saved config, which would win otherwise
        model.eval()
        own = range(a.process_index, len(dataset), a.world_size)
        with generation_ready(model, self.accelerator) as captioner, self.autocast(), self.accelerator.autocast():
            captioner.to(a.device)  # type: ignore[arg-type]
            part = dataset.select(own)
            written = write_sequences(captioner, self.image_processor, part, a.eval_batch_size, **how)
        rows = list(zip(own, written, strict=True))
        found = dict(gather_object(rows) if a.world_size > 1 else rows)
        return [found[i] for i in range(len(dataset))]

    def texts(self, model: Any, written: Sequence[Tensor | ImageError], dataset: Dataset) -> list[str | None]:
        """Decode the output of `write`; None for an image that cannot be read, and a warning that names those.

        Raises:
            ValueError: no image can be read.
        """
        return without_errors(captions_of(written, self.tokenizer, self._pad(model)), names_of(dataset))

    def predictions(self, model: Any, written: Sequence[Tensor | ImageError]) -> ndarray:
        """Pad the output of `write` to ``(N, 1 + L)``; only padding for an image that cannot be read."""
        pad = self._pad(model)
        rows = [each if isinstance(each, Tensor) else torch.tensor([pad]) for each in written]
        return pad_sequences(rows, pad).numpy()

    def _pad(self, model: Any) -> int:
        return token_id(captioner_in(model, self.accelerator), "pad_token_id")


def named_dataset(given: Any, datasets: Any) -> Any:
    """Return the dataset to evaluate: a dataset, a dict of datasets, or one of the trainer's by its name.

    Raises:
        ValueError: the trainer has no dataset of this name.
    """
    if not isinstance(given, str):
        return given
    named = datasets if isinstance(datasets, dict) else {}
    if given not in named:
        known = f"it has {', '.join(named)}" if named else "it is not a dict of datasets"
        raise ValueError(f"The trainer's eval_dataset has no dataset named {given!r}: {known}.")
    return named[given]


def measure_captions(
    caption_metrics: CaptionMetrics, texts: Sequence[str | None], dataset: Dataset
) -> dict[str, float]:
    """Measure the captions; if some are missing, add ``samples``, the number of captions.

    Raises:
        ValueError: ``caption_metrics`` did not return a dict.
    """
    read = [row for row, text in enumerate(texts) if text is not None]
    part = dataset if len(read) == len(texts) else dataset.select(read)
    figures = caption_metrics([text for text in texts if text is not None], part)
    if not isinstance(figures, dict):
        raise ValueError(f"caption_metrics returned a {type(figures).__name__}; it must return a dict of numbers.")
    if part is not dataset:
        figures = {**figures, "samples": float(len(read))}
    return broadcast_object_list([figures])[0]  # GPUs may differ in the last digit, and so in their decisions
