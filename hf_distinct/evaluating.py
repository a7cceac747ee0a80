"""A Trainer that evaluates and predicts by writing captions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import GenerationConfig, PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from hf_distinct.rollout import decode, generation_ready, pad_sequences, token_id, write_sequences
from hf_distinct.sharing import SharingTrainer

CaptionMetrics = Callable[[list[str], Dataset], dict[str, float]]
SPECIAL_TOKENS = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")


def with_special_tokens(config: GenerationConfig, model: PreTrainedModel) -> GenerationConfig:
    """A generation config that is to take the place of a model's: the special tokens that it lacks are the model's."""
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

    def caption(self, dataset: Dataset) -> list[str]:
        """Caption a dataset as evaluations do: by the saved generation config, and ``args.generation_*`` where set.

        Args:
            dataset: has ``image``.

        Returns:
            One caption a row, in order, on every process.
        """
        return decode(self.processing_class, self._write(dataset, {}))

    def _write(self, dataset: Dataset, generation: dict[str, Any]) -> Tensor:
        """Token ids ``(N, 1 + L)`` of a caption for each row, in order, on every process."""
        a = self.args
        how = {"max_length": a.generation_max_length, "num_beams": a.generation_num_beams} | generation
        how = {name: value for name, value in how.items() if value is not None}
        longest = how.pop("max_length", None)
        if longest is not None and "max_new_tokens" not in how:
            how["max_new_tokens"] = longest - 1  # where the saved config has this one, it would win
        self.model_wrapped.eval()
        own = range(a.process_index, len(dataset), a.world_size)
        with generation_ready(self.model_wrapped, self.accelerator) as captioner, self.compute_loss_context_manager():
            captioner.to(a.device)  # type: ignore[arg-type]
            part = dataset.select(own)
            sequences = write_sequences(captioner, self.image_processor, part, a.eval_batch_size, **how)
            pad = token_id(captioner, "pad_token_id")
        rows = list(zip(own, sequences, strict=True))
        found = dict(gather_object(rows) if a.world_size > 1 else rows)
        return pad_sequences([found[i] for i in range(len(dataset))], pad)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **generation: Any,
    ) -> dict[str, float]:
        """Caption the data and compute ``caption_metrics`` of the captions, else as ``Seq2SeqTrainer`` does.

        Args:
            eval_dataset: instead of the trainer's: a dataset, several by name, or the name of one of the trainer's.
            ignore_keys: not used: there are no logits.
            metric_key_prefix: how the names of the metrics begin; that of one of several is put behind it.
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
                raise ValueError(f"The trainer's eval_dataset has nothing of the name {dataset!r}: {known}.")
            dataset = named[dataset]
        if isinstance(dataset, dict):  # here, for the parent forgets the arguments of `generate`
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}", **generation)
            return found
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
            ``predictions``: token ids ``(N, 1 + L)`` as ``generate`` gives them; ``label_ids``: None; ``metrics``:
            those of ``caption_metrics``; of a prediction only if there is one and the dataset has ``captions``.

        Raises:
            ValueError: ``caption_metrics`` gave something else than figures by name.
        """
        dataset = dataloader.dataset
        sequences = self._write(dataset, getattr(self, "_gen_kwargs", {}))
        metrics: dict[str, float] = {}
        if self.caption_metrics and (description == "Evaluation" or "captions" in dataset.column_names):
            figures = self.caption_metrics(decode(self.processing_class, sequences), dataset)
            if not isinstance(figures, dict):
                raise ValueError(f"caption_metrics gave a {type(figures).__name__}; it must give a dict of figures.")
            figures = broadcast_object_list([figures])[0]  # GPUs may differ in a last digit, and what follows from it
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        return EvalLoopOutput(sequences.numpy(), None, metrics, len(dataset))
