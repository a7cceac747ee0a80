"""A Trainer whose runs can be stopped or killed at any moment, and resumed."""

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
from hf_distinct.training.finite import REMEDY, gradient_problems, scaler_problems, weight_problems
from hf_distinct.training.interruption import Interruption, leave

logger = logging.get_logger(__name__)


class ResumableTrainer(Seq2SeqTrainer):
    """What every training of a captioner needs, so that nothing saved is lost.

    - A checkpoint is sealed when it is whole; older ones are removed only then.
    - SIGTERM, SIGHUP, SIGUSR1, Ctrl-C or the death of the launcher end a run after the current step, with a
      checkpoint. Call `_agree` in each step: it tells all processes.
    - Weights that are not finite are never saved.
    - A second run in the same ``output_dir`` is refused while the first one is at work.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._interruption = Interruption()
        self._stop_signal = 0  # what all processes agreed to stop at
        self._saved_step: int | None = None
        self._seen_step: int | None = None

    def _begin(self, step: int | None) -> None:
        """Know nothing of earlier runs; ``step`` is that of the checkpoint that is resumed."""
        self._stop_signal = 0
        self._saved_step, self._seen_step = step, step

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; see `hf_distinct.files.checkpoints.choose` for ``resume_from_checkpoint``.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once there is a checkpoint.
            SystemExit: after SIGTERM, once there is a checkpoint.
            ValueError: there is no checkpoint to resume from, the training has diverged, or another run is at work in
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
        if self.is_world_process_zero():  # another may see an older state of a shared disk
            choice = checkpoints.choose(resume_from_checkpoint, str(self.args.output_dir))
        checkpoint = broadcast_object_list([choice])[0]
        self._checkpoint = Path(checkpoint) if checkpoint else None
        self._compare(self._checkpoint)
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

    def _compare(self, checkpoint: Path | None) -> None:
        """Refuse a checkpoint that this run cannot resume from, and warn of what it cannot take from it exactly."""
        if checkpoint is not None:
            self._compare_launches(checkpoint)

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

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The parent's, without groups of no parameter.

        Low-rank adapters have no bias: the group without weight decay is empty, and DeepSpeed would take it away from
        the optimiser after the scheduler has counted it.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent's; nothing once the last step is done.

        A run that is killed after its last checkpoint is resumed there, and the parent would train one step too many.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _gradient_problem(self, model: Any) -> str | None:
        """A sentence if the gradient of a whole step is not finite, which a finite loss does not rule out.

        Gradients are averaged over processes by then, so that all of them see the same.
        """
        if self.is_deepspeed_enabled:  # it has looked, and left its step out; in fp16 also while it finds its scale
            if self.accelerator.mixed_precision != "fp16" and self.accelerator.optimizer_step_was_skipped:
                return "The gradient is NaN or infinite."
            return None
        if self.accelerator.scaler is not None:  # gradients overflow now and then until it has found its scale
            return next(scaler_problems(self.accelerator.scaler), None)
        return next(gradient_problems(model), None)

    def _agree(self, void: Tensor | bool = False) -> bool:
        """Tell all processes whether one is asked to stop, and whether for one its batch is void."""
        device = self.accelerator.device
        told = torch.stack([torch.as_tensor(each, device=device).long() for each in (self._interruption.asked, void)])
        if self.args.world_size > 1:
            told = self.accelerator.gather(told[None]).amax(dim=0)
        self._stop_signal, anywhere = told.tolist()
        return bool(anywhere)

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As the parent's; stops when asked to."""
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        # A run that resumes after an epoch's last step begins with the next epoch: what is due at its end comes first,
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

    # --------------------------------------------------------------------------------------------------- checkpoints

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
                f"After step {self.state.global_step}: {problems[0]} The training has diverged and ends here: the "
                f"captioner is not saved, and what was saved before stays. {REMEDY}."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the parent's; a model that stands in the folder stays until the new one is whole.

        Raises:
            OSError: the folder could not be written.
            ValueError: a weight is NaN or infinite.
        """
        if _internal_call:  # into a checkpoint, which has its seal
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
        """As the parent's, but by names that files and memory agree on.

        transformers 5 gave layers (those of a ViT, a SegFormer, ...) new names, which its files have not, and which
        only `from_pretrained` translates: its Trainer leaves such layers as they are, with no more than a warning.
        """
        model = self.model if model is None else model
        if not isinstance(model, PreTrainedModel):  # adapters
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        refuse_code(resume_from_checkpoint)
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

    def _divided_anew(self, checkpoint: Path) -> bool:
        """Whether DeepSpeed's part of a checkpoint is of other processes, and now made for any number of them."""
        if checkpoints.processes_of(checkpoint) in (None, self.args.world_size):
            return False
        if self.is_world_process_zero():
            divide_anew(checkpoint)
        self.accelerator.wait_for_everyone()
        return True

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
            "%s was written by %d processes and there are %d now. Weights, optimiser, schedule and step, and in RL "
            "discriminator and memory, are what they were. Not exact: the random numbers (each process has its own); "
            "the next log line, which covers the steps from here on; and the order of the images, unless "
            "per_device_train_batch_size was changed so that the global batch is what it was.",
            checkpoint, then, now,
        )  # fmt: skip
