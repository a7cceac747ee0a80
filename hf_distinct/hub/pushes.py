"""Pushes of a training: during it and after it, with a card, and nothing that should stay on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import Seq2SeqTrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from hf_distinct.data.mined import link_or_copy
from hf_distinct.discriminator import FILE as DISCRIMINATOR
from hf_distinct.files import checkpoints
from hf_distinct.hub.transfer import REQUIRED_FILES, commit_files, model_files, prepare_repo, push_folder
from hf_distinct.text.portable import portable_file, portable_values

logger = logging.get_logger(__name__)

# What a run is taken up from, beside the model. Tensors and plain numbers all, which `weights_only` loads: nothing in
# it runs. The `training_args.bin` of a checkpoint is a pickle that holds paths, and nobody needs it to resume.
RESUMED_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "rl_state*.pt", DISCRIMINATOR)
LAST_CHECKPOINT = "last-checkpoint"
STAGED = ".push-"  # how folders begin that hold what is being sent


class Pushes:
    """Sends what a reader needs, and nothing else.

    - A push is one commit of listed files; it is made from a sealed checkpoint, while the training goes on. A push
      that fails is reported in a warning, and the training goes on.
    - ``hub_strategy``: ``end`` and ``every_save`` as in ``Trainer``. ``checkpoint`` and ``all_checkpoints`` also send
      what it takes to resume, as ``last-checkpoint/`` or ``checkpoint-N/``; but not DeepSpeed's, which is pickled.

    Args:
        args: the settings; those that begin with ``hub_`` count.
        write_card: writes the card of the training as it stands into a folder.
        pickled: whether checkpoints are DeepSpeed's.
    """

    def __init__(self, args: Seq2SeqTrainingArguments, write_card: Callable[[Path], Any], pickled: bool) -> None:
        self.args = args
        self.write_card = write_card
        self.pickled = pickled
        self._sender = ThreadPoolExecutor(max_workers=1)  # one after the other, in their order
        self._jobs: list[Future[None]] = []

    def prepare(self, token: str | None = None) -> str:
        """Make repository and branch, so that a token that may not do it is known before the training.

        Returns:
            The name of the repository.

        Raises:
            ValueError, ConnectionError: see `hf_distinct.hub.transfer.push_folder`.
        """
        output = Path(str(self.args.output_dir))
        for left in output.glob(f"{STAGED}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        name = self.args.hub_model_id or output.absolute().name
        return prepare_repo(name, **self._where(token), private=bool(self.args.hub_private_repo))

    def push_output(
        self, repo: str, commit_message: str, token: str | None = None, revision: str | None = None
    ) -> Future[str]:
        """Push ``output_dir``; the future gives the address of the repository."""
        where = self._where(token) | ({"revision": revision} if revision else {})
        return self._sender.submit(
            push_folder, str(self.args.output_dir), repo, **where, commit_message=commit_message
        )  # fmt: skip

    def push_checkpoint(self, repo: str, checkpoint: Path, step: int) -> None:
        """Push a sealed checkpoint, as ``hub_strategy`` says."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and not all(job.done() for job in self._jobs):
            return  # as Trainer does where uploads take longer than it is from one checkpoint to the next
        # Files of its own: the checkpoint may be removed while they are sent.
        staged = TemporaryDirectory(prefix=STAGED, dir=str(self.args.output_dir))
        message = f"Training in progress, step {step}"
        try:
            self._stage(checkpoint, Path(staged.name))
        except (OSError, ValueError) as error:  # a full disk, or adapters without the model that they adapt
            staged.cleanup()
            logger.warning("%s was not pushed, training goes on: %s", message, error)
        else:
            self._jobs.append(self._sender.submit(self._send, staged, repo, message))

    def wait(self) -> None:
        """Wait for what is being sent."""
        wait(self._jobs)

    def _where(self, token: str | None = None) -> dict[str, Any]:
        return {"revision": self.args.hub_revision, "token": token or self.args.hub_token}

    def _stage(self, checkpoint: Path, target: Path) -> None:
        """Put together what is sent of a checkpoint: model and card, and as ``hub_strategy`` says what resumes it."""
        model = model_files(checkpoint, REQUIRED_FILES[1:])
        for name, path in model.items():
            link_or_copy(path, target / name)
        self.write_card(target)
        if self.args.hub_strategy not in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            return
        if self.pickled:
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

    def _send(self, staged: TemporaryDirectory, repo: str, commit_message: str) -> None:
        with staged as folder:
            files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
            try:
                commit_files(files, repo, **self._where(), commit_message=commit_message)
            except Exception as error:  # whatever it is, it is no reason to lose a training
                logger.warning("%s was not pushed, training goes on: %s", commit_message, error)
