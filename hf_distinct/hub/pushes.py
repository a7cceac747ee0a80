"""A Trainer that shares what it makes: during the training and after it, with a card, and nothing that stays here."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import BaseImageProcessor, VisionEncoderDecoderModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging

from hf_distinct.data.mined import link_or_copy
from hf_distinct.hub.model_card import write_model_card
from hf_distinct.hub.transfer import (
    DISCRIMINATOR,
    REQUIRED_FILES,
    commit_files,
    model_files,
    prepare_repo,
    push_folder,
)
from hf_distinct.inference.pipelines import save_tokenizer
from hf_distinct.reporting.reward_formula import describe_reward
from hf_distinct.text.portable import portable, portable_file, portable_values
from hf_distinct.training import checkpoints
from hf_distinct.training.durable import DurableTrainer

logger = logging.get_logger(__name__)

# What a run is taken up from, beside the model. Tensors and plain numbers all, which `weights_only` loads: nothing in
# it runs. The `training_args.bin` of a checkpoint is a pickle that holds paths, and nobody needs it to resume.
RESUMED_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "rl_state*.pt", DISCRIMINATOR)
LAST_CHECKPOINT = "last-checkpoint"
STAGED = ".push-"  # how folders begin that hold what is being sent


class SharingTrainer(DurableTrainer):
    """What [`RLCaptionTrainer`] does so that ``push_to_hub`` sends what a reader needs, and nothing else.

    - A push is one commit of listed files; it is made from a sealed checkpoint, beside the training. One that fails is
      told in a warning, and training goes on.
    - ``hub_strategy``: ``end`` and ``every_save`` as in the parent. ``checkpoint`` and ``all_checkpoints`` also send
      what it takes to resume, as ``last-checkpoint/`` or ``checkpoint-N/``; but not DeepSpeed's, which is pickled.

    Attributes:
        card: what only the caller knows of the training, for its card: arguments of
            [`hf_distinct.hub.model_card.write_model_card`] by name.
        image_processor: saved beside the captioner.
    """

    model: VisionEncoderDecoderModel
    train_dataset: Dataset
    processing_class: Any
    image_processor: BaseImageProcessor
    discriminator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.card: dict[str, Any] = {}
        self._sender = ThreadPoolExecutor(max_workers=1)  # one after the other, in their order
        self._jobs: list[Future[None]] = []
        super().__init__(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the captioner with both of its processors, so that ``pipeline`` loads it; and the discriminator."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        save_tokenizer(self.processing_class, folder)
        self.image_processor.save_pretrained(folder)
        if self.args.discriminator_weight:
            weights = self.discriminator.discriminator.state_dict()
            weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            save_file(weights, folder / DISCRIMINATOR, {"scorer": self._scorer_id})

    def _load_best_model(self) -> None:
        """Load the best captioner, and the discriminator that is saved beside it."""
        super()._load_best_model()
        best = Path(str(self.state.best_model_checkpoint)) / DISCRIMINATOR
        if self.args.discriminator_weight and best.is_file():
            self.discriminator.discriminator.load_state_dict(load_file(best))

    # ---------------------------------------------------------------------------------------------------------- card

    @property
    def _scorer_id(self) -> str:
        scorer = self.appraiser.scorer
        return f"{portable(scorer.name)} (fingerprint {scorer.fingerprint})"

    def write_card(self, folder: str | Path, **facts: Any) -> Path:
        """Write the card of the training as it stands.

        Args:
            folder: where to.
            facts: arguments of [`hf_distinct.hub.model_card.write_model_card`], beside those in ``self.card``.

        Returns:
            The path of the card.
        """
        names = [reward.name for reward in self.appraiser.rewards]
        rewards = dict(zip(names, self.appraiser.reward_weights, strict=True))
        documented = {reward.name: reward.__doc__ for reward in self.appraiser.rewards}
        info = self.train_dataset.info
        known: dict[str, Any] = {
            "model_name": (self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name).split("/")[-1],
            "data": info.dataset_name or "captioned pictures",
            "data_license": info.license or None,
            "scorer": self._scorer_id,
            "reward": describe_reward(rewards, self.appraiser.baseline, self._scorer_id, self.args, documented),
            "base_model": getattr(self.model.config, "_name_or_path", None) or None,
            "settings": self.args.changed,
            "log_history": self.state.log_history,
            "alarms": self.alarms.told,
        }
        return write_model_card(folder, **known | self.card | facts)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card in the place of the parent's."""
        if self.is_world_process_zero():
            self.write_card(str(self.args.output_dir))

    # ---------------------------------------------------------------------------------------------------------- push

    def init_hf_repo(self, token: str | None = None) -> None:
        """Make repository and branch, so that a token that may not do it is known before the training.

        Raises:
            ValueError, ConnectionError: see `hf_distinct.hub.transfer.push_folder`.
        """
        if self.is_world_process_zero():
            for left in Path(str(self.args.output_dir)).glob(f"{STAGED}*"):  # by a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            trainer: Any = self  # which by transformers' own annotation has no repository ever
            trainer.hub_model_id = prepare_repo(name, **self._where(token), private=bool(self.args.hub_private_repo))

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
            commit_message: of the commit.
            blocking: whether to wait.
            token: in the place of ``args.hub_token``.
            revision: in the place of ``args.hub_revision``.
            kwargs: not used; the card knows what it needs.

        Returns:
            The address of the repository, or a future of it; None on other processes than the first.

        Raises:
            ValueError, ConnectionError: see `hf_distinct.hub.transfer.push_folder`.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        where = self._where(token) | ({"revision": revision} if revision else {})
        sent: Future[str] = self._sender.submit(
            push_folder, str(self.args.output_dir), str(self.hub_model_id), **where,
            commit_message=commit_message or "End of training",
        )  # fmt: skip
        return sent.result() if blocking else sent

    def _where(self, token: str | None = None) -> dict[str, Any]:
        return {"revision": self.args.hub_revision, "token": token or self.args.hub_token}

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the parent would send a checkpoint that is not sealed yet, and its pickles."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the parent's; what is saved is then pushed, as ``hub_strategy`` says."""
        super()._save_checkpoint(model, trial)
        if not self.args.push_to_hub or not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and not all(job.done() for job in self._jobs):
            return  # as the parent does where uploads take longer than it is from one checkpoint to the next
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # Files of its own: the checkpoint may be removed while they are sent.
        staged = TemporaryDirectory(prefix=STAGED, dir=str(self.args.output_dir))
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._stage(folder, Path(staged.name))
        except (OSError, ValueError) as error:  # a full disk, or adapters without the model that they adapt
            staged.cleanup()
            logger.warning("%s was not pushed, training goes on: %s", message, error)
        else:
            self._jobs.append(self._sender.submit(self._send, staged, message))

    def _finish_current_push(self) -> None:
        """Wait for what is being sent; the parent calls it at the end of a training."""
        wait(self._jobs)

    def _stage(self, checkpoint: Path, target: Path) -> None:
        """Put together what is sent of a checkpoint: model and card, and as ``hub_strategy`` says what resumes it."""
        model = model_files(checkpoint, REQUIRED_FILES[1:])
        for name, path in model.items():
            link_or_copy(path, target / name)
        self.write_card(target)
        if self.args.hub_strategy not in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            return
        if self.is_deepspeed_enabled:
            logger.warning("hub_strategy: DeepSpeed's checkpoints are pickled and not pushed; only the model is")
            return
        name = LAST_CHECKPOINT if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        folder = target / name
        folder.mkdir()
        resumed = [path for pattern in RESUMED_FILES for path in checkpoint.glob(pattern)]
        for path in [*model.values(), *resumed]:
            public = portable_file(path)  # as the push would make it, after which the seal would not hold
            if public is None:
                link_or_copy(path, folder / path.name)
            else:
                (folder / path.name).write_bytes(public)
        state = portable_values(json.loads((checkpoint / TRAINER_STATE_NAME).read_text()))
        (folder / TRAINER_STATE_NAME).write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
        checkpoints.seal(folder, self.args.world_size)

    def _send(self, staged: TemporaryDirectory, commit_message: str) -> None:
        with staged as folder:
            files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
            try:
                commit_files(files, str(self.hub_model_id), **self._where(), commit_message=commit_message)
            except Exception as error:  # whatever it is, it is no reason to lose a training
                logger.warning("%s was not pushed, training goes on: %s", commit_message, error)
