"""A Trainer whose runs can be stopped or killed at any time, and resumed."""

from __future__ import annotations

import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, Seq2SeqTrainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_distinct.distributed.deepspeed_checkpoints import divide_anew, is_of_deepspeed, mend_loaded
from hf_distinct.files import checkpoints, run_lock
from hf_distinct.files.disk_space import check_room
from hf_distinct.files.parts import UNFINISHED, written_together
from hf_distinct.files.safe_loading import refuse_code
from hf_distinct.inference.captioner_fit import frozen_problems
from hf_distinct.text.problems import refuse
from hf_distinct.training.finite import REMEDY, gradient_problems, scaler_problems, weight_problems
from hf_distinct.training.interruption import Interruption, leave

logger = logging.get_logger(__name__)


class ResumableTrainer(Seq2SeqTrainer):
    """The base of all captioner trainings, which protects what is saved.

    - A checkpoint is marked as complete at the end; older ones are removed only then.
    - SIGTERM, SIGHUP, SIGUSR1, Ctrl-C or the death of the launcher end a run after the current step, with a
      checkpoint. Subclasses call `_agree` in each step, which informs all processes.
    - Weights that are not finite are never saved.
    - A second run in the same ``output_dir`` is refused while the first one is running.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._interruption = Interruption()
        self._stop_signal = 0  # the signal that all processes agreed to stop at
        self._saved_step: int | None = None
        self._seen_step: int | None = None

    def _begin(self, step: int | None) -> None:
        """Reset the state of earlier runs; ``step`` is that of the checkpoint that is resumed."""
        self._stop_signal = 0
        self._saved_step, self._seen_step = step, step

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train like the parent; see `hf_distinct.files.checkpoints.choose` for ``resume_from_checkpoint``.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once there is a checkpoint.
            SystemExit: after SIGTERM, once there is a checkpoint.
            ValueError: there is no checkpoint to resume from, the training has diverged, or another run is using
                ``output_dir``.
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
        if self.is_world_process_zero():  # other processes may see an older state of a shared disk
            choice = checkpoints.choose(resume_from_checkpoint, str(self.args.output_dir))
        checkpoint = broadcast_object_list([choice])[0]
        self._checkpoint = Path(checkpoint) if checkpoint else None
        self._compare(self._checkpoint)
        self._check_room()
        self._begin(checkpoints.step_of(Path(checkpoint)) if checkpoint else None)
        on_start = self.args.eval_on_start
        self.args.eval_on_start = on_start and checkpoint is None  # a resumed run has already done it
        try:
            with self._interruption.watched():
                found = super().train(checkpoint, *args, **kwargs)
                self._agree()
                if self._stop_signal:  # received after the last step
                    self._stop(self.model_wrapped, None)
        finally:
            self.args.eval_on_start = on_start
        return found

    def _compare(self, checkpoint: Path | None) -> None:
        """Reject a checkpoint that this run cannot resume from, and warn about what is not restored exactly."""
        if checkpoint is not None:
            self._compare_launches(checkpoint)

    def _check_room(self) -> None:
        """Check for space for the final model, and for one more checkpoint with the optimiser's state."""
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
        """Run like the parent, but with the current batch size; the parent would use the checkpoint's."""
        return super()._inner_training_loop(self.args.train_batch_size, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Create the optimiser like the parent, without empty parameter groups.

        Low-rank adapters have no bias, so the group without weight decay is empty. DeepSpeed would remove it from the
        optimiser after the scheduler has counted it.

        Raises:
            ValueError: no weight is trainable.
        """
        refuse(frozen_problems(self.model))
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return batches like the parent, but none after the last step.

        If a run is killed after its last checkpoint and resumed, the parent would train one step too many.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _gradient_problem(self, model: Any) -> str | None:
        """Return a message if the gradient is not finite, which can happen with a finite loss.

        Gradients are already averaged over processes, so all processes see the same.
        """
        if self.is_deepspeed_enabled:  # it checks itself and skips the step; in fp16 also while adjusting its scale
            if self.accelerator.mixed_precision != "fp16" and self.accelerator.optimizer_step_was_skipped:
                return "The gradient is NaN or infinite."
            return None
        if self.accelerator.scaler is not None:  # gradients may overflow until the scaler has found its scale
            return next(scaler_problems(self.accelerator.scaler), None)
        return next(gradient_problems(model), None)

    def _agree(self, void: Tensor | bool = False) -> bool:
        """Tell all processes whether any process should stop, and whether the batch is void in any process."""
        device = self.accelerator.device
        flags = torch.stack([torch.as_tensor(each, device=device).long() for each in (self._interruption.asked, void)])
        if self.args.world_size > 1:
            flags = self.accelerator.gather(flags[None]).amax(dim=0)
        self._stop_signal, anywhere = flags.tolist()
        return bool(anywhere)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Log, save and evaluate like the parent; stop when requested."""
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        # A run that resumes after an epoch's last step starts with the next epoch. So what is due at the end of the
        # epoch is done first, in a second call for the same step.
        epoch_is_over = self._seen_step == self.state.global_step
        self._seen_step = self.state.global_step
        if self._stop_signal and (epoch_is_over or not float(self.state.epoch or 0).is_integer()):
            self._stop(model, trial)

    def _stop(self, model: Any, trial: Any) -> None:
        """End the run as requested, with a checkpoint of this step."""
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(model, trial)
        logger.warning(
            "stopped by %s after step %d, which is saved in %s: continue with --resume_from_checkpoint true",
            signal.Signals(self._stop_signal).name, self.state.global_step, self.args.output_dir,
        )  # fmt: skip
        leave(self._stop_signal)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Decide like the parent, and set the best step, which 4.57 does not set with ``save_strategy="best"``."""
        found = super()._determine_best_metric(metrics, trial)
        if found:
            self.state.best_global_step = self.state.global_step
        return found

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark as complete, and only then remove older checkpoints; an incomplete checkpoint is removed.

        Raises:
            OSError: the checkpoint could not be written.
            ValueError: a weight is NaN or infinite.
        """
        self._refuse_weights_that_are_not_finite(model)
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # from a killed run
        self.accelerator.wait_for_everyone()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder)
        self.state.best_model_checkpoint = checkpoints.located(self.state.best_model_checkpoint, run)
        # The parent would remove the last complete checkpoint before the new one is complete.
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
        self.accelerator.wait_for_everyone()  # a process that ended earlier would end the others, too

    def _refuse_weights_that_are_not_finite(self, model: nn.Module) -> None:
        problems = gather_object(list(weight_problems(model)))
        if problems:
            raise ValueError(
                f"After step {self.state.global_step}: {problems[0]} The training has diverged and is stopped. The "
                f"captioner is not saved, and earlier checkpoints are kept. {REMEDY}."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save like the parent; an earlier model in the folder is kept until the new one is complete.

        Raises:
            OSError: the folder could not be written.
            ValueError: a weight is NaN or infinite.
        """
        if _internal_call:  # into a checkpoint, which is marked when complete
            return super().save_model(output_dir, _internal_call)
        self._refuse_weights_that_are_not_finite(self.model_wrapped)
        folder = Path(output_dir or str(self.args.output_dir))
        writer = written_together(folder) if self.args.should_save else nullcontext(folder / UNFINISHED)
        with checkpoints.written_to(folder, str(self.args.output_dir)), writer as unfinished:
            self.accelerator.wait_for_everyone()
            super().save_model(str(unfinished), _internal_call=True)
            self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As the parent's, without the card that PEFT writes beside adapters: a form to be filled in."""
        card = Path(output_dir or str(self.args.output_dir)) / "README.md"
        ours = card.read_bytes() if card.is_file() else None
        super()._save(output_dir, state_dict)
        if ours is not None:
            card.write_bytes(ours)
        else:
            card.unlink(missing_ok=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_deepspeed_enabled:
            mend_loaded(self.model_wrapped, self.lr_scheduler)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load like the parent, with parameter names that match the file's.

        transformers 5 renamed layers (in ViT, SegFormer and others). Files have the old names, which only
        `from_pretrained` translates: its Trainer leaves such layers unchanged with just a warning.
        """
        model = self.model if model is None else model
        if not isinstance(model, PreTrainedModel):  # adapters
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        refuse_code(resume_from_checkpoint)
        model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_callback_state(self) -> None:
        """Load like the parent, and find the best checkpoint even if the run has been moved."""
        super()._load_callback_state()
        assert self._checkpoint is not None
        saved = TrainerState.load_from_json(str(self._checkpoint / TRAINER_STATE_NAME)).best_model_checkpoint
        self.state.best_model_checkpoint = checkpoints.located(saved, Path(str(self.args.output_dir)))

    def _load_best_model(self) -> None:
        """Load the best model like the parent, even if it was moved or written by another number of processes."""
        self.state.best_model_checkpoint = checkpoints.located(
            self.state.best_model_checkpoint, Path(str(self.args.output_dir))
        )
        best = str(self.state.best_model_checkpoint)
        if not Path(best).is_dir():
            return logger.warning("the best checkpoint, %s, is missing: the captioner of the last step is kept", best)
        if self.is_deepspeed_enabled:
            # Resuming with another number of processes has set it, but this run's own checkpoints are not universal.
            engine: Any = self.model_wrapped
            engine._config.load_universal_checkpoint = self._divided_anew(Path(best))
        elif not self.is_fsdp_enabled and isinstance(self.model, PreTrainedModel):
            return self._load_from_checkpoint(best)
        return super()._load_best_model()

    def _divided_anew(self, checkpoint: Path) -> bool:
        """Whether another number of processes wrote DeepSpeed's part of a checkpoint; it is then converted."""
        if checkpoints.processes_of(checkpoint) in (None, self.args.world_size):
            return False
        if self.is_world_process_zero():
            divide_anew(checkpoint)
        self.accelerator.wait_for_everyone()
        return True

    def _compare_launches(self, checkpoint: Path) -> None:
        """Warn about what cannot be resumed exactly with another number of processes.

        Raises:
            ValueError: only one of the two launches used DeepSpeed.
        """
        of_deepspeed = is_of_deepspeed(checkpoint)
        how = "with" if of_deepspeed else "without"
        if of_deepspeed != self.is_deepspeed_enabled:
            raise ValueError(
                f"{checkpoint} was written {how} DeepSpeed, whose optimiser state has another format. Launch the run "
                "in the same way as before, or start a new training from its weights with "
                f"--model_name_or_path {checkpoint}."
            )
        then, now = checkpoints.processes_of(checkpoint), self.args.world_size
        if then is None or then == now:
            return
        if self.is_deepspeed_enabled and self._divided_anew(checkpoint):
            self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
        logger.warning(
            "%s was written by %d processes and there are %d now. Weights, optimiser, schedule, step, discriminator "
            "and memory are restored exactly. Not exact: the random numbers (each process has its own); "
            "the next log line, which covers the steps from here on; and the order of the images, unless you change "
            "per_device_train_batch_size so that the global batch stays the same.",
            checkpoint, then, now,
        )  # fmt: skip
