"""Checkpoints that show whether they are complete: a seal, written last, lists size and digest of every file."""

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
    """Declare a checkpoint whole. Call it in one process, when every process has written all of its files.

    Args:
        folder: the checkpoint.
        processes: how many wrote it; see `processes_of`.

    Raises:
        OSError: if what was written does not reach the disk.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:  # some file systems tell only now that there was no room
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
    """The reason why a checkpoint is not whole, with the name of the file; None if it is whole."""
    try:
        found = json.loads((folder / SEAL).read_text())
        if reason := seals.altered(found, ("processes", "files")):
            return f"{SEAL}: {reason}"
        files = dict(found["files"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"it was never finished ({SEAL} is missing or broken)"
    return seals.changed(folder, files)


def processes_of(folder: Path) -> int | None:
    """How many processes wrote a checkpoint; None if it does not say."""
    return json.loads((folder / SEAL).read_text())["processes"] if (folder / SEAL).is_file() else None


def step_of(folder: Path) -> int | None:
    """The step that a checkpoint was saved after, by its name; None if it is named otherwise."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match[1]) if match else None


def newest_whole(folder: Path, before: int | None = None) -> Path | None:
    """The whole checkpoint of the most steps in a folder (of fewer steps than ``before``); None if there is none.

    Each torn one that is passed over is named in a warning.
    """
    found = {step: path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (step := step_of(path)) is not None}
    for step in sorted(found, reverse=True):
        if before is not None and step >= before:
            continue
        reason = damage(found[step])
        if reason is None:
            return found[step]
        logger.warning("%s is torn and is not used: %s", found[step], reason)
    return None


def remove_oldest(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove checkpoints of a run, the oldest first, until there are no more than it may keep.

    Args:
        newest: the checkpoint just saved, which stays.
        limit: ``save_total_limit``; None or 0 for no limit.
        best: ``best_model_checkpoint``, which stays too.
    """
    # By number: a folder such as "checkpoint-notes" is the user's.
    found = {path for path in newest.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if step_of(path) is not None}
    found = {path for path in found if path.is_dir() and not path.is_symlink()}
    kept = {newest.resolve(), Path(best or newest).resolve()}  # whichever way each of them is spelled
    # By age before step: the folder may hold a longer run of earlier times.
    old = [path for path in found if path.resolve() not in kept]
    old.sort(key=lambda path: (path.stat().st_mtime, step_of(path) or 0))
    for path in old[: max(len(found) - limit, 0) if limit else 0]:
        shutil.rmtree(path, ignore_errors=True)


def located(named: str | None, run: Path) -> str | None:
    """Where a checkpoint is that an earlier run has named, for ``output_dir`` may have moved since.

    Args:
        named: its path as it was then; None stays None.
        run: where the checkpoints of this run are.
    """
    if named is None or Path(named).is_dir():
        return named
    here = run / Path(named).name
    return str(here) if here.is_dir() else named


def choose(setting: str | bool | None, output_dir: str | Path) -> str | None:
    """The checkpoint that a run is taken up from.

    Args:
        setting: ``resume_from_checkpoint``: true for the newest whole checkpoint of ``output_dir``, if there is any
            (the same command then starts a run and takes it up); the path of a checkpoint, in whose place the whole
            one before it is taken if it is torn; or false or None.
        output_dir: where this run writes its checkpoints.

    Returns:
        The path of a checkpoint, or None to begin anew.

    Raises:
        ValueError: if the named checkpoint is torn, or none, and there is no whole one before it.
    """
    if setting is None or str(setting).lower() in ("", "false", "none"):
        return None
    if str(setting).lower() == "true":
        newest = newest_whole(Path(output_dir))
        if newest is None:
            logger.warning("%s holds no whole checkpoint: training starts from the beginning", output_dir)
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
        raise ValueError(f"{named} is torn: {reason}. There is no whole checkpoint before it.")
    logger.warning("%s is torn: %s. Training continues from %s, the checkpoint before it", named, reason, before)
    return str(before)


@contextmanager
def written_to(folder: str | Path, output_dir: str | Path) -> Iterator[None]:
    """Around the writing of a folder: whatever keeps it from being written is one kind of error that names it.

    Args:
        folder: what is written.
        output_dir: where the checkpoints are, the newest of which the error names.

    Raises:
        OSError: torch and safetensors tell of a disk's errors in kinds of error of their own. Errors that no disk
            makes pass as they are.
    """
    try:
        yield
    except Exception as error:
        whole = newest_whole(Path(output_dir))
        left = f"{whole} is whole" if whole else "there is no whole checkpoint yet"
        advice = remedy(error)
        if advice is None:
            logger.error("%s was not written: %s: %s; %s", folder, type(error).__name__, error, left)
            raise
        raise OSError(
            f"{folder} could not be written: {one_line(error)}. {advice}, then continue with --resume_from_checkpoint "
            f"true; {left}."
        ) from error


def _is_of_another_trainer(folder: Path) -> bool:
    """Whether a plain Trainer finished it: it has what is written last there, and nothing of what is ours."""
    files = {path.name for path in folder.iterdir()}
    return TRAINER_STATE_NAME in files and not files & {SEAL, RL_STATE}
