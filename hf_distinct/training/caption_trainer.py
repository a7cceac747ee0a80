"""A Trainer for captioners: it evaluates and predicts by writing captions, and pushes models with a card."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from hf_distinct.data.prepared import as_evaluated, as_pictures
from hf_distinct.fast import as_set
from hf_distinct.hub.pushes import Pushes
from hf_distinct.inference.pipelines import save_processors
from hf_distinct.training.evaluating import CaptionMetrics, DatasetWriter, measure_captions, named_dataset
from hf_distinct.training.resumable import ResumableTrainer


class CaptionTrainer(ResumableTrainer):
    """What a Trainer of captioners needs besides a loss.

    - `evaluate` and `predict` write one caption per row; they compute no loss.
    - Saved models include both processors, so that ``pipeline("image-to-text")`` can load them.
    - A push has a card and no private files; see `hf_distinct.hub.pushes`.

    Args:
        args: as for ``Seq2SeqTrainer``.
        image_processor: the captioner's; it is saved with it.
        caption_metrics: computes metrics from captions and their dataset; None for none.
        kwargs: as for ``Seq2SeqTrainer``.
    """

    args: Any  # Seq2SeqTrainingArguments; Trainer annotates its base class
    model: PreTrainedModel
    processing_class: Any

    def __init__(
        self,
        *args: Any,
        image_processor: BaseImageProcessor,
        caption_metrics: CaptionMetrics | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_processor = image_processor
        self.caption_metrics = caption_metrics
        super().__init__(*args, **kwargs)
        self.writer = DatasetWriter(
            self.args, self.accelerator, self.processing_class, image_processor, self.compute_loss_context_manager
        )

    @cached_property
    def pushes(self) -> Pushes:
        """Pushes to the Hub; the parent's constructor already needs it."""
        return Pushes(self.args, self.write_card, pickled=self.is_deepspeed_enabled)

    @as_set
    def caption(self, dataset: Dataset) -> list[str | None]:
        """Caption a dataset as evaluations do: with the saved generation config, and ``args.generation_*`` if set.

        Args:
            dataset: has a column ``image``; other columns are ignored.

        Returns:
            One caption per row, in order, on every process. None for an image that cannot be read; a warning counts
            and names those.

        Raises:
            ValueError: if the dataset has no images, or none can be read.
        """
        dataset = as_pictures(dataset, "dataset")
        return self.writer.texts(self.model, self.writer.write(self.model_wrapped, dataset), dataset)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **generation: Any,
    ) -> dict[str, float]:
        """Caption the data and compute ``caption_metrics`` of the captions; otherwise like ``Seq2SeqTrainer``.

        Unreadable images are left out of the captions and of the dataset passed to ``caption_metrics``. A warning
        names them, and the metrics then include ``samples``, the number of images measured.

        Args:
            eval_dataset: replaces the trainer's: a dataset, a dict of datasets, or the name of one of the trainer's.
            ignore_keys: ignored, because there are no logits.
            metric_key_prefix: prefix of the metric names, followed by the dataset's name if there are several.
            generation: arguments of ``generate``: ``max_length``, ``num_beams`` ...

        Raises:
            ValueError: if there is no dataset or no caption_metrics.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None or self.caption_metrics is None:
            raise ValueError("Evaluation needs an eval_dataset and caption_metrics.")
        dataset = named_dataset(dataset, self.eval_dataset)
        if isinstance(dataset, dict):  # handled here, because the parent drops the arguments of `generate`
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}", **generation)
            return found
        return super().evaluate(
            as_evaluated(dataset, "eval_dataset"), ignore_keys, metric_key_prefix, **generation
        )  # fmt: skip

    @as_set
    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Write one caption per row of a dataset and compute its metrics; used by `evaluate` and `predict`.

        Returns:
            ``predictions``: token ids ``(N, 1 + L)`` from ``generate``; only padding for an image that cannot be read.
            ``label_ids``: None. ``metrics``: those of ``caption_metrics``; for a prediction only if the dataset has
            ``captions``.

        Raises:
            ValueError: ``caption_metrics`` did not return a dict, or no image can be read.
        """
        dataset = as_pictures(dataloader.dataset, "dataset")
        written = self.writer.write(self.model_wrapped, dataset, **getattr(self, "_gen_kwargs", {}))
        texts = self.writer.texts(self.model, written, dataset)
        metrics: dict[str, float] = {}
        if self.caption_metrics and (description == "Evaluation" or "captions" in dataset.column_names):
            metrics = measure_captions(self.caption_metrics, texts, dataset)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(self.writer.predictions(self.model, written), None, metrics, len(dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler:
        """Keep the order of the rows; the parent would group them by length if the training does."""
        return SequentialSampler(eval_dataset)

    # ------------------------------------------------------------------------------------------------ saving, the Hub

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save like the parent, with both processors."""
        super()._save(output_dir, state_dict)
        save_processors(self.processing_class, self.image_processor, output_dir or str(self.args.output_dir))

    def write_card(self, folder: str | Path) -> Path:
        """Write the card of the training so far, and return its path."""
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card instead of the parent's."""
        if self.is_world_process_zero():
            self.write_card(str(self.args.output_dir))

    def init_hf_repo(self, token: str | None = None) -> None:
        """Create the repository like the parent; see `hf_distinct.hub.pushes.Pushes.prepare`."""
        if self.is_world_process_zero():
            self.hub_model_id: Any = self.pushes.prepare(token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save captioner and card into ``output_dir`` and push them.

        Args:
            commit_message: message of the commit.
            blocking: wait until the push is done.
            token: replaces ``args.hub_token``.
            revision: replaces ``args.hub_revision``.
            kwargs: ignored; the card gets its information from the training.

        Returns:
            The URL of the repository, or a future of it; None on other processes than the first.

        Raises:
            ValueError, ConnectionError: see `hf_distinct.hub.transfer.push_folder`.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        sent = self.pushes.push_output(self.hub_model_id, commit_message or "End of training", token, revision)
        return sent.result() if blocking else sent

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Do nothing: the parent would push an incomplete checkpoint and its pickles."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save like the parent; then push the checkpoint according to ``hub_strategy``."""
        super()._save_checkpoint(model, trial)
        if self.args.push_to_hub and self.is_world_process_zero():
            step = self.state.global_step
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            self.pushes.push_checkpoint(self.hub_model_id, folder, step)

    def _finish_current_push(self) -> None:
        """Wait for pending pushes; the parent calls this at the end of a training."""
        self.pushes.wait()
