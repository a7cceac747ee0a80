"""What a checkpoint holds beside what is the Trainer's: discriminator, memory, counts, alarms, what is not logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from hf_distinct.config import RLCaptionConfig
from hf_distinct.files import checkpoints
from hf_distinct.rewards.appraiser import Appraiser
from hf_distinct.training.alarms import AlarmCallback
from hf_distinct.training.origin import differences, refusals, rewards_differ
from hf_distinct.training.void_steps import VoidSteps

logger = logging.get_logger(__name__)


class RLState:
    """Saves and loads all that the next step depends on beside the Trainer's own state.

    Args:
        args: the settings.
        appraiser: holds discriminator and memory.
        alarms: know what they have seen.
        void_steps: counts steps that were left out.
    """

    def __init__(
        self, args: RLCaptionConfig, appraiser: Appraiser, alarms: AlarmCallback, void_steps: VoidSteps
    ) -> None:
        self.args = args
        self.appraiser = appraiser
        self.alarms = alarms
        self.void_steps = void_steps
        self.origin: dict[str, Any] = {}

    def compare(self, checkpoint: Path, origin: dict[str, Any]) -> None:
        """Compare what a checkpoint was made with and what this run is made with; warn of differences.

        Args:
            checkpoint: its folder.
            origin: of this run; see `hf_distinct.training.origin.origin_of`.

        Raises:
            ValueError: the state of the checkpoint would be wrong.
        """
        path = checkpoint / checkpoints.RL_STATE
        then = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if path.is_file() else {}
        if "origin" not in then:  # not in checkpoints of version 0.1's first days
            return
        if wrong := list(refusals(then["origin"], origin)):
            raise ValueError(
                f"{checkpoint} cannot be resumed: {' And '.join(wrong)} Resume it with what it was written with, or "
                f"begin a new training from its weights with --model_name_or_path {checkpoint}."
            )
        for each in differences(then["origin"], origin) if self.args.process_index == 0 else ():
            logger.warning("%s is resumed, but %s.", checkpoint, each)

    def save(self, folder: str, unlogged: dict[str, Any]) -> None:
        """Write it into a checkpoint.

        Args:
            folder: that of the checkpoint.
            unlogged: what this process has measured since the last log line; of every process it is kept.
        """
        state = {
            **self.appraiser.state_dict(),
            "origin": self.origin,
            "skipped": self.void_steps.state_dict(),
            "alarms": self.alarms.state_dict(),
            "unlogged": gather_object([unlogged]),
        }
        path = self._file(folder)
        if self.args.should_save or path.name != checkpoints.RL_STATE:
            path.parent.mkdir(parents=True, exist_ok=True)  # process 0 may not have come to it
            torch.save(state, path)

    def load(self, folder: str) -> dict[str, Any] | None:
        """Take it up; returns what had not been logged, or None if this cannot be known."""
        path = self._file(folder)
        if not path.is_file():
            logger.warning("%s is missing: discriminator and memory start anew", path)
            return None
        # Whoever takes a part moves it: a count of Adam's steps, for one, stays on the CPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.appraiser.load_state_dict(state)
        self.void_steps.load_state_dict(state["skipped"])
        as_then = "origin" not in state or not rewards_differ(state["origin"], self.origin)
        if "alarms" in state and as_then:  # neither is in checkpoints of version 0.1's first days
            self.alarms.load_state_dict(state["alarms"])
        if len(state["unlogged"]) != self.args.world_size:
            return None
        return state["unlogged"][self.args.process_index]

    def _file(self, folder: str) -> Path:
        """One file for all processes, whose state is the same, unless each remembers what it alone has seen."""
        a = self.args
        alone = a.memory_batches and not a.pool_other_processes and a.process_index
        return Path(folder) / (f"rl_state_{a.process_index}.pt" if alone else checkpoints.RL_STATE)
