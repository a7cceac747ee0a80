"""A trainer that stops if a loss is not finite: for teacher forcing and distillation."""

from __future__ import annotations

from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from hf_distinct.training.finite import loss_problems
from hf_distinct.training.resumable import ResumableTrainer


def early_stopping(args: TrainingArguments, patience: int | None) -> list[TrainerCallback]:
    """Return callbacks that stop a training after ``patience`` evaluations without improvement; none for None.

    Raises:
        ValueError: ``args`` do not keep the best checkpoint by a metric.
    """
    if patience is None:
        return []
    if not args.load_best_model_at_end:
        raise ValueError(
            f"early_stopping_patience={patience} counts evaluations since the best one: it needs "
            "--load_best_model_at_end true, --metric_for_best_model, and --eval_strategy and --save_strategy steps."
        )
    args.restore_callback_states_from_checkpoint = True  # a resumed run continues to count
    return [EarlyStoppingCallback(early_stopping_patience=patience)]


class SupervisedTrainer(ResumableTrainer):
    """A `ResumableTrainer` that stops if a loss or a gradient is NaN or infinite, without saving the model."""

    trained = "captioner"  # in messages

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Take a step like the parent.

        Raises:
            ValueError: the loss or the gradient is NaN or infinite in any process; the step is not taken.
        """
        loss = super().training_step(model, *args, **kwargs)
        problem = next(loss_problems(loss), None)
        if problem is None and self.accelerator.sync_gradients:
            problem = self._gradient_problem(model)
        if self._agree(problem is not None):
            found = next(filter(None, gather_object([problem])))
            raise ValueError(
                f"Step {self.state.global_step + 1}: {found} The training has diverged and is stopped; this "
                f"{self.trained} is not saved. Lower --learning_rate (now {self.args.learning_rate:g}), or raise "
                "--warmup_steps; --resume_from_checkpoint true continues from the last checkpoint, if there is one."
            )
        return loss
