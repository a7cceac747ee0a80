"""A Trainer that evaluates and predicts by writing captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import GenerationConfig, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from hf_distinct.captioner import captioner_in, token_id
from hf_distinct.data.images import ImageError
from hf_distinct.data.prepared import as_evaluated, as_pictures, names_of
from hf_distinct.distributed.zero3 import generation_ready
from hf_distinct.generation.rollouts import ONE_CAPTION
from hf_distinct.hub.pushes import SharingTrainer
from hf_distinct.inference.dataset_captions import captions_of, pad_sequences, without_errors, write_sequences

CaptionMetrics = Callable[[list[str], Dataset], dict[str, float]]
SPECIAL_TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def with_special_tokens(config: GenerationConfig, model: PreTrainedModel) -> GenerationConfig:
    """Complete a generation config that replaces a model's: the special tokens that it lacks are the model's."""
    for name in SPECIAL_TOKENS:
        if getattr(config, name, None) is None:
            own = getattr(model.generation_config, name, None)
            setattr(config, name, getattr(model.config, name, None) if own is None else own)
    return config


class EvaluatingTrainer(SharingTrainer):
    """What [`RLCaptionTrainer`] does to evaluate and to predict: one caption for each row, no loss, nothing learned.

    Attributes:
        caption_metrics: what an evaluation computes from captions and their dataset; None: there is none.
        eval_dataset: a dataset, several by name, or None.
    """

    caption_metrics: CaptionMetrics | None

    def caption(self, dataset: Dataset) -> list[str | None]:
        """Caption a dataset as evaluations do: by the saved generation config, and ``args.generation_*`` where set.

        Args:
            dataset: has ``image``; further columns are not read.

        Returns:
            One caption a row, in order, on every process. None for a picture that cannot be read; a warning counts
            and names those.

        Raises:
            ValueError: if it is no such dataset, or no picture can be read.
        """
        dataset = as_pictures(dataset, "dataset")
        return self._texts(self._write(dataset, {}), dataset)

    def _texts(self, written: Sequence[Tensor | ImageError], dataset: Dataset) -> list[str | None]:
        pad = token_id(captioner_in(self.model, self.accelerator), "pad_token_id")
        return without_errors(captions_of(written, self.processing_class, pad), names_of(dataset))

    def _write(self, dataset: Dataset, generation: dict[str, Any]) -> list[Tensor | ImageError]:
        """Token ids ``(1 + L,)`` of a caption for each row, or why there is none; in order, on every process."""
        a = self.args
        how = {"max_length": a.generation_max_length, "num_beams": a.generation_num_beams} | generation
        how = {name: value for name, value in how.items() if value is not None}
        if refused := [name for name, value in ONE_CAPTION.items() if how.pop(name, value) != value]:
            raise ValueError(f"{', '.join(refused)}: a picture gets one caption, and no scores are kept.")
        longest = how.pop("max_length", None)
        if longest is not None and "max_new_tokens" not in how:
            how["max_new_tokens"] = longest - 1  # where the saved config has this one, it would win
        self.model_wrapped.eval()
        own = range(a.process_index, len(dataset), a.world_size)
        with (
            generation_ready(self.model_wrapped, self.accelerator) as captioner,
            self.compute_loss_context_manager(),
            self.accelerator.autocast(),
        ):
            captioner.to(a.device)  # type: ignore[arg-type]
            part = dataset.select(own)
            written = write_sequences(captioner, self.image_processor, part, a.eval_batch_size, **how)
        rows = list(zip(own, written, strict=True))
        found = dict(gather_object(rows) if a.world_size > 1 else rows)
        return [found[i] for i in range(len(dataset))]

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **generation: Any,
    ) -> dict[str, float]:
        """Caption the data and compute ``caption_metrics`` of the captions, else as ``Seq2SeqTrainer`` does.

        Pictures that cannot be read are left out, of the captions and of the dataset that ``caption_metrics`` gets;
        a warning names them, and the metrics then have ``samples``, the number of pictures that were measured.

        Args:
            eval_dataset: instead of the trainer's: a dataset, several by name, or the name of one of the trainer's.
            ignore_keys: not used: there are no logits.
            metric_key_prefix: prefix of the metrics' names, followed by the name of the dataset if there are several.
            generation: arguments of ``generate``: ``max_length``, ``num_beams`` ...

        Raises:
            ValueError: if there is nothing to evaluate on or with.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None or self.caption_metrics is None:
            raise ValueError("Evaluation needs an eval_dataset and caption_metrics.")
        if isinstance(dataset, str):
            named = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
            if dataset not in named:
                known = f"it has {', '.join(named)}" if named else "it is not a dict of datasets"
                raise ValueError(f"The trainer's eval_dataset has no dataset named {dataset!r}: {known}.")
            dataset = named[dataset]
        if isinstance(dataset, dict):  # here, for the parent forgets the arguments of `generate`
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}", **generation)
            return found
        dataset = as_evaluated(dataset, "eval_dataset")
        return super().evaluate(dataset, ignore_keys, metric_key_prefix, **generation)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        """Rows are captioned in their order; the parent's would group them by length if those of the training are."""
        return SequentialSampler(eval_dataset)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """What `evaluate` and `predict` share: one caption for each row of a dataset, and the metrics of them.

        Returns:
            ``predictions``: token ids ``(N, 1 + L)`` as ``generate`` gives them; only padding for a picture that
            cannot be read. ``label_ids``: None. ``metrics``: those of ``caption_metrics``; a prediction has them only
            if the dataset has ``captions``.

        Raises:
            ValueError: ``caption_metrics`` gave something else than figures by name, or no picture can be read.
        """
        dataset = as_pictures(dataloader.dataset, "dataset")
        written = self._write(dataset, getattr(self, "_gen_kwargs", {}))
        texts = self._texts(written, dataset)
        metrics: dict[str, float] = {}
        if self.caption_metrics and (description == "Evaluation" or "captions" in dataset.column_names):
            metrics = self._measure_captions(texts, dataset)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        pad = token_id(captioner_in(self.model, self.accelerator), "pad_token_id")
        rows = [each if isinstance(each, Tensor) else torch.tensor([pad]) for each in written]
        return EvalLoopOutput(pad_sequences(rows, pad).numpy(), None, metrics, len(dataset))

    def _measure_captions(self, texts: Sequence[str | None], dataset: Dataset) -> dict[str, float]:
        """Figures of the captions that there are; with ``samples``, their number, if some are missing."""
        assert self.caption_metrics is not None
        read = [row for row, text in enumerate(texts) if text is not None]
        part = dataset if len(read) == len(texts) else dataset.select(read)
        figures = self.caption_metrics([text for text in texts if text is not None], part)
        if not isinstance(figures, dict):
            raise ValueError(f"caption_metrics gave a {type(figures).__name__}; it must give a dict of figures.")
        if part is not dataset:
            figures = {**figures, "samples": float(len(read))}
        return broadcast_object_list([figures])[0]  # GPUs may differ in a last digit, and what follows from it
