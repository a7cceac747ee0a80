"""Pushes during and after a training: the model with its card, and no private files."""

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

# Files needed to resume, besides the model: tensors and plain numbers that `weights_only` loads, so no code runs. The
# `training_args.bin` of a checkpoint is left out: it is a pickle with local paths, and not needed to resume.
RESUMED_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "rl_state*.pt", DISCRIMINATOR)
LAST_CHECKPOINT = "last-checkpoint"
STAGED = ".push-"  # prefix of folders with files to push


class Pushes:
    """Pushes the files that users of the model need, and nothing else.

    - A push is a single commit of selected files. It is made from a complete checkpoint while training continues. If a
      push fails, a warning is logged and training continues.
    - ``hub_strategy``: ``end`` and ``every_save`` work as in ``Trainer``. ``checkpoint`` and ``all_checkpoints`` also
      push what is needed to resume, as ``last-checkpoint/`` or ``checkpoint-N/``, except with DeepSpeed, whose
      checkpoints are pickled.

    Args:
        args: the training arguments; those that begin with ``hub_`` are used.
        write_card: writes the card of the training so far into a folder.
        pickled: whether checkpoints are DeepSpeed's.
    """

    def __init__(self, args: Seq2SeqTrainingArguments, write_card: Callable[[Path], Any], pickled: bool) -> None:
        self.args = args
        self.write_card = write_card
        self.pickled = pickled
        self._sender = ThreadPoolExecutor(max_workers=1)  # one push at a time, in order
        self._jobs: list[Future[None]] = []

    def prepare(self, token: str | None = None) -> str:
        """Create repository and branch before training, so that a missing permission is reported early.

        Returns:
            The name of the repository.

        Raises:
            ValueError, ConnectionError: see `hf_distinct.hub.transfer.push_folder`.
        """
        output = Path(str(self.args.output_dir))
        for left in output.glob(f"{STAGED}*"):  # from a killed run
            shutil.rmtree(left, ignore_errors=True)
        name = self.args.hub_model_id or output.absolute().name
        return prepare_repo(name, **self._where(token), private=bool(self.args.hub_private_repo))

    def push_output(
        self, repo: str, commit_message: str, token: str | None = None, revision: str | None = None
    ) -> Future[str]:
        """Push ``output_dir``; the future returns the URL of the repository."""
        where = self._where(token) | ({"revision": revision} if revision else {})
        return self._sender.submit(
            push_folder, str(self.args.output_dir), repo, **where, commit_message=commit_message
        )  # fmt: skip

    def push_checkpoint(self, repo: str, checkpoint: Path, step: int) -> None:
        """Push a complete checkpoint according to ``hub_strategy``."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and not all(job.done() for job in self._jobs):
            return  # like Trainer, if an upload takes longer than the time between checkpoints
        # Copies, because the checkpoint may be deleted during the upload.
        staged = TemporaryDirectory(prefix=STAGED, dir=str(self.args.output_dir))
        message = f"Training in progress, step {step}"
        try:
            self._stage(checkpoint, Path(staged.name))
        except (OSError, ValueError) as error:  # a full disk, or adapters without their base model
            staged.cleanup()
            logger.warning("%s was not pushed, training continues: %s", message, error)
        else:
            self._jobs.append(self._sender.submit(self._send, staged, repo, message))

    def wait(self) -> None:
        """Wait for pending pushes."""
        wait(self._jobs)

    def _where(self, token: str | None = None) -> dict[str, Any]:
        return {"revision": self.args.hub_revision, "token": token or self.args.hub_token}

    def _stage(self, checkpoint: Path, target: Path) -> None:
        """Collect the files to push: model and card, and with some values of ``hub_strategy`` those to resume."""
        model = model_files(checkpoint, REQUIRED_FILES[1:])
        for name, path in model.items():
            link_or_copy(path, target / name)
        self.write_card(target)
        if self.args.hub_strategy not in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            return
        if self.pickled:
            logger.warning("hub_strategy: only the model is pushed, because DeepSpeed's checkpoints are pickled")
            return
        name = LAST_CHECKPOINT if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        folder = target / name
        folder.mkdir()
        resumed = [path for pattern in RESUMED_FILES for path in checkpoint.glob(pattern)]
        for path in [*model.values(), *resumed]:
            public = portable_file(path)  # changed now: changed by the push, it would not match its digest
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
            except Exception as error:  # no failure of a push should end a training
                logger.warning("%s was not pushed, training continues: %s", commit_message, error)
