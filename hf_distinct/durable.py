"""A Trainer whose runs can be killed at any moment and taken up exactly, and that meets faults as a person would."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_distinct import checkpoints, run_lock
from hf_distinct.alarms import AlarmCallback
from hf_distinct.appraisal import Appraisal, Appraiser
from hf_distinct.config import RLCaptionConfig
from hf_distinct.deepspeed_checkpoints import divide_anew, is_of_deepspeed, mend_loaded
from hf_distinct.finite import REMEDY, gradient_problems, weight_problems
from hf_distinct.interruption import Interruption, leave
from hf_distinct.metering import Meter
from hf_distinct.origin import differences, origin_of, refusals, rewards_differ
from hf_distinct.room import check_room

logger = logging.get_logger(__name__)

SKIPPED_IN_A_ROW = 5
"""The training ends after so many steps in a row whose rewards, loss or gradient were not finite."""

LEAST_SCALE = 2.0**-10
"""Below this scale of the loss, fp16 gradients did not overflow: they are NaN at any scale."""


class DurableTrainer(Seq2SeqTrainer):
    """What [`RLCaptionTrainer`] does so that nothing saved is lost, and a run that is resumed is the same run.

    - A checkpoint holds, beside what is the Trainer's, discriminator, memory, the counts of skipped steps, and what
      was measured since the last log line. It is sealed when it is whole; older ones are removed only then.
    - SIGTERM, SIGHUP, SIGUSR1, Ctrl-C or the death of the launcher end a run after the current step, with a
      checkpoint.
    - A step whose rewards, loss or gradient are not finite in any process is left out in all. Weights that are not
      finite are never saved.
    - A second run in the same ``output_dir`` is refused while the first one is at work.

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._interruption = Interruption()
        self._begin(None)

    def _begin(self, step: int | None) -> None:
        """Know nothing of earlier runs; ``step`` is that of the checkpoint that is taken up."""
        self.skipped_steps = self._skipped_in_a_row = 0
        self._void: list[str] | None = None  # the image ids of a batch that makes the present step void
        self._stop_signal = 0  # what all processes agreed to stop at
        self._saved_step, self._seen_step = step, step
        self._unlogged_loss = torch.tensor(0.0)
        self.alarms.reset()
        self._carried: dict[str, Any] | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; see `hf_distinct.checkpoints.choose` for ``resume_from_checkpoint``.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once there is a checkpoint.
            SystemExit: after SIGTERM, once there is a checkpoint.
            ValueError: there is no checkpoint to resume from, too many steps in a row were not finite, or another run
                is at work in ``output_dir``.
            OSError: a checkpoint could not be written.
        """
        self._claim_output_dir()
        try:
            return self._train(resume_from_checkpoint, *args, **kwargs)
        finally:
            run_lock.release(str(self.args.output_dir))

    def _claim_output_dir(self) -> None:
        refusal = None
        if self.is_world_process_zero():
            try:
                run_lock.claim(str(self.args.output_dir))
            except ValueError as error:
                refusal = str(error)
        if refusal := broadcast_object_list([refusal])[0]:
            raise ValueError(refusal)

    def _train(self, resume_from_checkpoint: str | bool | None, *args: Any, **kwargs: Any) -> Any:
        choice = None
        if self.is_world_process_zero():  # another may see an older state of a shared disk
            choice = checkpoints.choose(resume_from_checkpoint, str(self.args.output_dir))
        checkpoint = broadcast_object_list([choice])[0]
        self._checkpoint = Path(checkpoint) if checkpoint else None
        self._origin = self._made_with()
        if checkpoint is not None:
            self._compare_launches(Path(checkpoint))
            self._compare_origins(Path(checkpoint))
        self._check_room()
        self._begin(checkpoints.step_of(Path(checkpoint)) if checkpoint else None)
        on_start = self.args.eval_on_start
        self.args.eval_on_start = on_start and checkpoint is None  # that of a run which is taken up has been made
        try:
            with self._interruption.watched():
                found = super().train(checkpoint, *args, **kwargs)
                self._agree()
                if self._stop_signal:  # it came too late for a step to see it
                    self._stop(self.model_wrapped, None)
        finally:
            self.args.eval_on_start = on_start
        return found

    def _check_room(self) -> None:
        """The model at the end must find room; one more checkpoint, with the optimiser's state, too."""
        if not self.args.should_save:
            return
        assert isinstance(self.model, nn.Module)
        sizes = [(each.numel() * each.element_size(), each.requires_grad) for each in self.model.parameters()]
        weights, learned = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
        if self.args.save_strategy == "no":
            return check_room(str(self.args.output_dir), weights, "The captioner at the end")
        state = 0 if self.args.save_only_model else 2 * learned
        check_room(str(self.args.output_dir), 2 * weights + state, "The captioner at the end and one checkpoint")

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the parent's, which would take the batch of the checkpoint's processes, whatever the settings say now."""
        return super()._inner_training_loop(self.args.train_batch_size, *args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; nothing once the last step is done, or alarms have stopped the training.

        A run that is killed after its last checkpoint is taken up there, and the parent would train one step too many.
        """
        if self.state.global_step >= self.state.max_steps or self.alarms.stopped:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    # --------------------------------------------------------------------------------------------------- a void step

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's. Nothing of a void step reaches the optimiser, which then has nothing to do.

        Raises:
            ValueError: after `SKIPPED_IN_A_ROW` void steps in a row, with the image ids of the last one.
        """
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            if self._void is None:
                self._look_at_gradient(model, inputs)
            self._close_step(model)
        return loss

    def _look_at_gradient(self, model: Any, inputs: dict[str, Any]) -> None:
        """Make the step void if its gradient is not finite, which a finite loss does not rule out.

        Gradients are averaged over processes by now, so that all of them see the same.
        """
        problem = None
        if self.is_deepspeed_enabled:  # it has looked, and left its step out; in fp16 also while it finds its scale
            if self.accelerator.mixed_precision != "fp16" and self.accelerator.optimizer_step_was_skipped:
                problem = "The gradient is NaN or infinite."
        elif self.accelerator.scaler is not None:  # gradients overflow now and then until it has found its scale
            if self.accelerator.scaler.get_scale() < LEAST_SCALE:
                problem = "The gradient is NaN or infinite at every scale of the loss."
        else:
            problem = next(gradient_problems(model), None)
        if problem:
            self._void = [str(image_id) for image_id in inputs["columns"]["image_id"]]
            self._warn_void(f"{problem} The loss is finite.")

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

    def _agree(self, void: Tensor | bool = False) -> bool:
        """Tell all processes whether one is asked to stop, and whether for one its batch is void."""
        device = self.accelerator.device
        told = torch.stack([torch.as_tensor(each, device=device).long() for each in (self._interruption.asked, void)])
        if self.args.world_size > 1:
            told = self.accelerator.gather(told[None]).amax(dim=0)
        self._stop_signal, anywhere = told.tolist()
        return bool(anywhere)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As the parent's; takes up what had not been logged at the checkpoint, and stops when asked to."""
        if self._carried is not None:
            carried, self._carried = self._carried, None
            self._total_loss_scalar = carried["total_loss"]
            tr_loss += carried["loss"]
            self._globalstep_last_logged = carried["logged_step"]
        self._unlogged_loss = tr_loss
        if self._skipped_in_a_row:
            grad_norm = None
            if self.accelerator.optimizer_step_was_skipped and self._seen_step != self.state.global_step:
                assert self.lr_scheduler is not None
                self.lr_scheduler.step()  # the Trainer left that out with the optimiser's; the schedule goes by steps
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        # Whoever resumes behind an epoch's last step begins with the next epoch: what is due at its end comes first,
        # by a second call for the same step.
        epoch_is_over = self._seen_step == self.state.global_step
        self._seen_step = self.state.global_step
        if self._stop_signal and (epoch_is_over or not float(self.state.epoch or 0).is_integer()):
            self._stop(model, trial)

    def _stop(self, model: Any, trial: Any) -> None:
        """Leave as asked, with a checkpoint of this step."""
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
        logger.warning(
            "stopped by %s after step %d, which is saved in %s: go on with --resume_from_checkpoint true",
            signal.Signals(self._stop_signal).name, self.state.global_step, self.args.output_dir,
        )  # fmt: skip
        leave(self._stop_signal)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As the parent's, which in transformers 4.57 forgets the step of the best where ``save_strategy`` is best."""
        found = super()._determine_best_metric(metrics, trial)
        if found:
            self.state.best_global_step = self.state.global_step
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, seal, and only then remove older ones; what cannot be finished does not stay.

        Raises:
            OSError: the checkpoint could not be written.
            ValueError: a weight is NaN or infinite.
        """
        self._refuse_weights_that_are_not_finite(model)
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # what a kill may have left there
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        self.state.best_model_checkpoint = checkpoints.located(self.state.best_model_checkpoint, run)
        # The parent would remove the last whole checkpoint before the new one is sealed.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with checkpoints.written_to(folder, run):
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    checkpoints.seal(folder, self.args.world_size)
            except Exception:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            finally:
                self.args.save_total_limit = limit
        self._saved_step = self.state.global_step
        if self.args.should_save:
            checkpoints.remove_oldest(folder, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()  # nobody leaves, and takes the others with it, before all is done

    def _refuse_weights_that_are_not_finite(self, model: nn.Module) -> None:
        problems = gather_object(list(weight_problems(model)))
        if problems:
            raise ValueError(
                f"After step {self.state.global_step}: {problems[0]} The captioner is not saved, and what was saved "
                f"before stays. {REMEDY}."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's.

        Raises:
            OSError: the folder could not be written.
            ValueError: a weight is NaN or infinite.
        """
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        self._refuse_weights_that_are_not_finite(self.model_wrapped)
        with checkpoints.written_to(output_dir or str(self.args.output_dir), str(self.args.output_dir)):
            super().save_model(output_dir)

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
        if self.is_deepspeed_enabled:
            mend_loaded(self.model_wrapped, self.lr_scheduler)
        path = self._state_file(checkpoint)
        if not path.is_file():
            logger.warning("%s is missing: discriminator and memory start anew", path)
            return
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self.appraiser.load_state_dict(state)
        self.skipped_steps, self._skipped_in_a_row = state["skipped"]
        as_then = "origin" not in state or not rewards_differ(state["origin"], self._origin)
        if "alarms" in state and as_then:  # neither is in checkpoints of version 0.1's first days
            self.alarms.load_state_dict(state["alarms"])
        if len(state["unlogged"]) == self.args.world_size:
            self._carried = state["unlogged"][self.args.process_index]
            self.meter.load_state_dict(self._carried["figures"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As the parent's, but by names that files and memory agree on.

        transformers 5 gave layers (those of a ViT, a SegFormer, ...) new names, which its files have not, and which
        only `from_pretrained` translates: its Trainer leaves such layers as they are, with no more than a warning.
        """
        model = self.model if model is None else model
        if not isinstance(model, PreTrainedModel):  # adapters
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_callback_state(self) -> None:
        """As the parent's; a run that has moved finds its best checkpoint, which transformers 5 would forget."""
        super()._load_callback_state()
        assert self._checkpoint is not None
        saved = TrainerState.load_from_json(str(self._checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        self.state.best_model_checkpoint = checkpoints.located(saved, Path(str(self.args.output_dir)))

    def _load_best_model(self) -> None:
        """As the parent's, with the same remedy; and by however many processes the best was written."""
        self.state.best_model_checkpoint = checkpoints.located(
            self.state.best_model_checkpoint, Path(str(self.args.output_dir))
        )
        best = str(self.state.best_model_checkpoint)
        if not Path(best).is_dir():
            return logger.warning("the best checkpoint, %s, is gone: the captioner stays that of the last step", best)
        if self.is_deepspeed_enabled:
            # A run that was taken up from other processes has set it, but its own checkpoints are as they are.
            engine: Any = self.model_wrapped
            engine._config.load_universal_checkpoint = self._divided_anew(Path(best))
        elif not self.is_fsdp_enabled and isinstance(self.model, PreTrainedModel):
            return self._load_from_checkpoint(best)
        return super()._load_best_model()

    def _state_file(self, folder: str) -> Path:
        """One file for all processes, whose state is the same, unless each remembers what it alone has seen."""
        a = self.args
        alone = a.memory_batches and not a.pool_other_processes and a.process_index
        return Path(folder) / (f"rl_state_{a.process_index}.pt" if alone else checkpoints.RL_STATE)

    def _divided_anew(self, checkpoint: Path) -> bool:
        """Whether DeepSpeed's part of a checkpoint is of other processes, and now made for any number of them."""
        if checkpoints.processes_of(checkpoint) in (None, self.args.world_size):
            return False
        if self.is_world_process_zero():
            divide_anew(checkpoint)
        self.accelerator.wait_for_everyone()
        return True

    def _made_with(self) -> dict[str, Any]:
        """What this run is made with; see `hf_distinct.origin`."""
        appraiser = self.appraiser
        return origin_of(
            self.args,
            scorer=appraiser.scorer.fingerprint,
            dataset=self.train_dataset,
            rewards=[reward.name for reward in appraiser.rewards],
            reward_weights=appraiser.reward_weights,
            reference_model=self.reference_model,
        )

    def _compare_origins(self, checkpoint: Path) -> None:
        """Say what of a checkpoint a run that is made with something else cannot take up.

        Raises:
            ValueError: its state would be wrong.
        """
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

    def _compare_launches(self, checkpoint: Path) -> None:
        """Say what cannot be taken up exactly by another number of processes.

        Raises:
            ValueError: only one of the launches, then and now, is DeepSpeed's.
        """
        of_deepspeed = is_of_deepspeed(checkpoint)
        how = "with" if of_deepspeed else "without"
        if of_deepspeed != self.is_deepspeed_enabled:
            raise ValueError(
                f"{checkpoint} was written {how} DeepSpeed, whose optimisers have a form of "
                "their own. Launch the run as it was launched then, or begin a new training from its weights with "
                f"--model_name_or_path {checkpoint}."
            )
        then, now = checkpoints.processes_of(checkpoint), self.args.world_size
        if then is None or then == now:
            return
        if self.is_deepspeed_enabled and self._divided_anew(checkpoint):
            self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
        logger.warning(
            "%s was written by %d processes and there are %d now. Weights, optimiser, schedule, discriminator, memory "
            "and step are taken up as they were. Not exact: the random numbers of the rollouts (each process has its "
            "own); the next log line, which covers the steps from here on; and the order of the images, unless "
            "per_device_train_batch_size was changed so that the global batch is what it was.",
            checkpoint, then, now,
        )  # fmt: skip
