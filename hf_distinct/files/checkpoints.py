"""Checkpoints that can be verified: a file written last lists size and digest of every other file."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_distinct.files import seals
from hf_distinct.files.disk_space import remedy
from hf_distinct.text.problems import one_line

logger = logging.get_logger(__name__)

SEAL = "complete.json"
RL_STATE = "rl_state.pt"


def seal(folder: Path, processes: int) -> None:
    """Mark a checkpoint as complete. Call this in one process after every process has written all of its files.

    Args:
        folder: the checkpoint.
        processes: how many processes wrote it; see `processes_of`.

    Raises:
        OSError: if the files do not reach the disk.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:  # some file systems report a full disk only now
        with path.open("rb") as file:
            os.fsync(file.fileno())
    found = seals.describe(folder, files)
    unfinished = folder / f"{SEAL}.tmp"
    with unfinished.open("w") as file:
        json.dump(seals.sealed({"processes": processes, "files": found}), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / SEAL)


def damage(folder: Path) -> str | None:
    """Return why a checkpoint is not complete, with the name of the file; None if it is complete."""
    try:
        found = json.loads((folder / SEAL).read_text())
        if reason := seals.altered(found, ("processes", "files")):
            return f"{SEAL}: {reason}"
        files = dict(found["files"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"it was never finished ({SEAL} is missing or broken)"
    return seals.changed(folder, files)


def processes_of(folder: Path) -> int | None:
    """Return how many processes wrote a checkpoint; None if it is not recorded."""
    return json.loads((folder / SEAL).read_text())["processes"] if (folder / SEAL).is_file() else None


def step_of(folder: Path) -> int | None:
    """Return the step after which a checkpoint was saved, from its name; None for other names."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match[1]) if match else None


def newest_whole(folder: Path, before: int | None = None) -> Path | None:
    """Return the complete checkpoint with the highest step (below ``before``) in a folder, or None if there is none.

    Each incomplete checkpoint that is skipped is named in a warning.
    """
    found = {step: path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (step := step_of(path)) is not None}
    for step in sorted(found, reverse=True):
        if before is not None and step >= before:
            continue
        reason = damage(found[step])
        if reason is None:
            return found[step]
        logger.warning("%s is incomplete and is skipped: %s", found[step], reason)
    return None


def remove_oldest(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove checkpoints of a run, the oldest first, until the limit is met.

    Args:
        newest: the checkpoint just saved; it is kept.
        limit: ``save_total_limit``; None or 0 for no limit.
        best: ``best_model_checkpoint``; it is kept, too.
    """
    # Only numbered ones: a folder such as "checkpoint-notes" belongs to the user.
    found = {path for path in newest.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if step_of(path) is not None}
    found = {path for path in found if path.is_dir() and not path.is_symlink()}
    kept = {newest.resolve(), Path(best or newest).resolve()}
    # By age, then by step: the folder may contain an earlier and longer run.
    old = [path for path in found if path.resolve() not in kept]
    old.sort(key=lambda path: (path.stat().st_mtime, step_of(path) or 0))
    for path in old[: max(len(found) - limit, 0) if limit else 0]:
        shutil.rmtree(path, ignore_errors=True)


def located(named: str | None, run: Path) -> str | None:
    """Find a checkpoint that an earlier run named, even if ``output_dir`` has been moved since.

    Args:
        named: its path in the earlier run; None stays None.
        run: where the checkpoints of this run are.
    """
    if named is None or Path(named).is_dir():
        return named
    here = run / Path(named).name
    return str(here) if here.is_dir() else named


def choose(setting: str | bool | None, output_dir: str | Path) -> str | None:
    """Return the checkpoint to resume from.

    Args:
        setting: ``resume_from_checkpoint``. True selects the newest complete checkpoint of ``output_dir``, if there
            is one, so that the same command starts a run and resumes it. A path selects this checkpoint; if it is
            incomplete, the last complete one before it is used. False or None starts from the beginning.
        output_dir: where this run writes its checkpoints.

    Returns:
        The path of a checkpoint, or None to start from the beginning.

    Raises:
        ValueError: if the named checkpoint does not exist, or is incomplete with no complete one before it.
    """
    if setting is None or str(setting).lower() in ("", "false", "none"):
        return None
    if str(setting).lower() == "true":
        newest = newest_whole(Path(output_dir))
        if newest is None:
            logger.warning("%s has no complete checkpoint: training starts from the beginning", output_dir)
        return None if newest is None else str(newest)
    named = Path(str(setting))
    if not named.is_dir():
        raise ValueError(f"resume_from_checkpoint={setting}: there is no such folder")
    reason = damage(named)
    if reason is None or _is_of_another_trainer(named):
        return str(named)
    step = step_of(named)
    before = None if step is None else newest_whole(named.parent, step)
    if before is None:
        raise ValueError(f"{named} is incomplete: {reason}. There is no complete checkpoint before it.")
    logger.warning("%s is incomplete: %s. Training continues from the checkpoint before it, %s", named, reason, before)
    return str(before)


@contextmanager
def written_to(folder: str | Path, output_dir: str | Path) -> Iterator[None]:
    """Raise every failure to write a folder as one type of error that names the folder.

    Args:
        folder: the folder to write.
        output_dir: where the checkpoints are; the error names the newest complete one.

    Raises:
        OSError: the disk failed; torch and safetensors have their own error types for this. Other errors are raised
            unchanged.
    """
    try:
        yield
    except Exception as error:
        whole = newest_whole(Path(output_dir))
        left = f"the newest complete checkpoint is {whole}" if whole else "there is no complete checkpoint yet"
        advice = remedy(error)
        if advice is None:
            logger.error("%s was not written: %s: %s; %s", folder, type(error).__name__, error, left)
            raise
        raise OSError(
            f"{folder} could not be written: {one_line(error)}. {advice}, then continue with --resume_from_checkpoint "
            f"true; {left}."
        ) from error


def _is_of_another_trainer(folder: Path) -> bool:
    """Whether a plain Trainer wrote this checkpoint completely: it has the Trainer's last file and none of ours."""
    files = {path.name for path in folder.iterdir()}
    return TRAINER_STATE_NAME in files and not files & {SEAL, RL_STATE}
