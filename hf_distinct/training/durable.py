"""A Trainer whose runs can be killed at any moment and taken up exactly, and that meets faults as a person would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from hf_distinct.checks.finite import REMEDY
from hf_distinct.config import RLCaptionConfig
from hf_distinct.rewards.appraiser import Appraisal, Appraiser
from hf_distinct.training import checkpoints
from hf_distinct.training.alarms import AlarmCallback
from hf_distinct.training.metering import Meter
from hf_distinct.training.origin import differences, origin_of, refusals, rewards_differ
from hf_distinct.training.resumable import ResumableTrainer

logger = logging.get_logger(__name__)

SKIPPED_IN_A_ROW = 5
"""The training ends after so many steps in a row whose rewards, loss or gradient were not finite."""


class DurableTrainer(ResumableTrainer):
    """What [`RLCaptionTrainer`] does beyond `ResumableTrainer`, so that a run that is resumed is the same run.

    - A checkpoint holds, beside what is the Trainer's, discriminator, memory, the counts of skipped steps, and what
      was measured since the last log line.
    - A step whose rewards, loss or gradient are not finite in any process is left out in all.

    Attributes:
        alarms: know what they have seen.
        appraiser: holds discriminator and memory.
        reference_model: the captioner that ``kl_weight`` compares with; None: there is none.
        meter: holds what has been measured since the last log line.
        skipped_steps: how many were left out so far.
    """

    args: RLCaptionConfig
    train_dataset: Dataset
    reference_model: Any
    alarms: AlarmCallback
    appraiser: Appraiser
    meter: Meter

    def _begin(self, step: int | None) -> None:
        """Know nothing of earlier runs; ``step`` is that of the checkpoint that is resumed."""
        super()._begin(step)
        self.skipped_steps = self._skipped_in_a_row = 0
        self._void: list[str] | None = None  # the image ids of a batch that makes the present step void
        self._unlogged_loss = torch.tensor(0.0)
        self.alarms.reset()
        self._carried: dict[str, Any] | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; nothing once alarms have stopped the training."""
        return ([], None) if self.alarms.stopped else super().get_batch_samples(*args, **kwargs)

    # --------------------------------------------------------------------------------------------------- a void step

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's. Nothing of a void step reaches the optimiser, which then has nothing to do.

        Raises:
            ValueError: after `SKIPPED_IN_A_ROW` void steps in a row, with the image ids of the last one.
        """
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            if self._void is None and (problem := self._gradient_problem(model)):
                self._void = [str(image_id) for image_id in inputs["columns"]["image_id"]]
                self._warn_void(f"{problem} The loss is finite.")
            self._close_step(model)
        return loss

    def _warn_void(self, reason: str) -> None:
        if self.is_world_process_zero():
            logger.warning("step %d is left out: %s", self.state.global_step + 1, reason)

    def _close_step(self, model: Any) -> None:
        if self._void is None:
            self._skipped_in_a_row = 0
            return
        ids, self._void = self._void, None
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise ValueError(
                f"{SKIPPED_IN_A_ROW} steps in a row had rewards, losses or gradients that are NaN or infinite (the "
                f"warnings above tell which), the last one step {self.state.global_step + 1} with the images "
                f"{', '.join(ids)}. {REMEDY}; if a reward is named above, mend it."
            )
        # DeepSpeed, and a scaler of fp16, leave a step out by themselves when they see its gradients.
        if not self.is_deepspeed_enabled and self.accelerator.scaler is None:
            model.zero_grad()

    def all_finite(self, loss: Tensor, appraisal: Appraisal, inputs: dict[str, Any]) -> bool:
        """Whether loss and rewards are finite in all processes; where they are not, the step at hand becomes void.

        The loss of a void step has to be NaN in every process, and its backward pass has to run: DeepSpeed holds the
        gradients of the batches before, and lets go of them when it finds one that is not finite.

        Args:
            loss: scalar, of this process.
            appraisal: what the loss was made of.
            inputs: the batch.
        """
        finite = loss.detach().isfinite() & appraisal.rewards["total"].isfinite().all()
        if not self._agree(~finite):
            return True
        ids = [str(image_id) for image_id in inputs["columns"]["image_id"]]
        reason = "" if finite else appraisal.trouble() or f"the loss is {loss}"
        told = gather_object([(ids, reason)])
        self._void = [image_id for theirs, _ in told for image_id in theirs]
        self._warn_void("; ".join(reason for _, reason in told if reason))
        return False

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As the parent's; takes up what had not been logged at the checkpoint."""
        if self._carried is not None:
            carried, self._carried = self._carried, None
            self._total_loss_scalar = carried["total_loss"]
            tr_loss += carried["loss"].to(tr_loss.device)
            self._globalstep_last_logged = carried["logged_step"]
        self._unlogged_loss = tr_loss
        if self._skipped_in_a_row:
            grad_norm = None
            if self.accelerator.optimizer_step_was_skipped and self._seen_step != self.state.global_step:
                assert self.lr_scheduler is not None
                self.lr_scheduler.step()  # the Trainer left that out with the optimiser's; the schedule goes by steps
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save, beside optimiser and schedule, all else that the next step depends on."""
        super()._save_optimizer_and_scheduler(output_dir)
        unlogged = {
            "loss": self._unlogged_loss.cpu(), "logged_step": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar, "figures": self.meter.state_dict(),
        }  # fmt: skip
        state = {
            **self.appraiser.state_dict(),
            "origin": self._origin,
            "skipped": [self.skipped_steps, self._skipped_in_a_row],
            "alarms": self.alarms.state_dict(),
            "unlogged": gather_object([unlogged]),  # of every process
        }
        path = self._state_file(output_dir)
        if self.args.should_save or path.name != checkpoints.RL_STATE:
            path.parent.mkdir(parents=True, exist_ok=True)  # process 0 may not have come to it
            torch.save(state, path)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take it all up again."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = self._state_file(checkpoint)
        if not path.is_file():
            logger.warning("%s is missing: discriminator and memory start anew", path)
            return
        # Whoever takes a part moves it: a count of Adam's steps, for one, stays on the CPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.appraiser.load_state_dict(state)
        self.skipped_steps, self._skipped_in_a_row = state["skipped"]
        as_then = "origin" not in state or not rewards_differ(state["origin"], self._origin)
        if "alarms" in state and as_then:  # neither is in checkpoints of version 0.1's first days
            self.alarms.load_state_dict(state["alarms"])
        if len(state["unlogged"]) == self.args.world_size:
            self._carried = state["unlogged"][self.args.process_index]
            self.meter.load_state_dict(self._carried["figures"])

    def _state_file(self, folder: str) -> Path:
        """One file for all processes, whose state is the same, unless each remembers what it alone has seen."""
        a = self.args
        alone = a.memory_batches and not a.pool_other_processes and a.process_index
        return Path(folder) / (f"rl_state_{a.process_index}.pt" if alone else checkpoints.RL_STATE)

    def _made_with(self) -> dict[str, Any]:
        """What this run is made with; see `hf_distinct.training.origin`."""
        appraiser = self.appraiser
        return origin_of(
            self.args,
            scorer=appraiser.scorer.fingerprint,
            dataset=self.train_dataset,
            rewards=[reward.name for reward in appraiser.rewards],
            reward_weights=appraiser.reward_weights,
            reference_model=self.reference_model,
        )

    def _compare(self, checkpoint: Path | None) -> None:
        """As the parent's; also with what a run is made with.

        Raises:
            ValueError: the state of the checkpoint would be wrong.
        """
        self._origin = self._made_with()
        super()._compare(checkpoint)
        if checkpoint is None:
            return
        path = checkpoint / checkpoints.RL_STATE
        then = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if path.is_file() else {}
        if "origin" not in then:  # not in checkpoints of version 0.1's first days
            return
        if wrong := list(refusals(then["origin"], self._origin)):
            raise ValueError(
                f"{checkpoint} cannot be resumed: {' And '.join(wrong)} Resume it with what it was written with, or "
                f"begin a new training from its weights with --model_name_or_path {checkpoint}."
            )
        for each in differences(then["origin"], self._origin) if self.is_world_process_zero() else ():
            logger.warning("%s is resumed, but %s.", checkpoint, each)

