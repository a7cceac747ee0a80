"""The part of a checkpoint that the Trainer does not save: discriminator, memory, counts, alarms, unlogged values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from hf_distinct.config import RLCaptionConfig
from hf_distinct.files import checkpoints
from hf_distinct.hub.training_card import scorer_id
from hf_distinct.rewards.appraiser import Appraiser
from hf_distinct.scorer import ClipScorer
from hf_distinct.training.alarms import AlarmCallback
from hf_distinct.training.clip_building import clip_of
from hf_distinct.training.origin import differences, refusals, rewards_differ
from hf_distinct.training.void_steps import VoidSteps

logger = logging.get_logger(__name__)

SCORER = "scorer"
"""Folder of the trained scorer, in the captioner's."""


class RLState:
    """Saves and loads everything that the next step depends on, besides the Trainer's own state.

    Args:
        args: the settings.
        appraiser: has the discriminator and the memory.
        alarms: the alarms.
        void_steps: counts the skipped steps.
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
        """Compare the origins of a checkpoint and of this run, and warn about differences.

        Args:
            checkpoint: its folder.
            origin: of this run; see `hf_distinct.training.origin.origin_of`.

        Raises:
            ValueError: the state of the checkpoint cannot be used.
        """
        path = checkpoint / checkpoints.RL_STATE
        then = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if path.is_file() else {}
        if "origin" not in then:  # written by an early version 0.1
            return
        if wrong := list(refusals(then["origin"], origin)):
            raise ValueError(
                f"{checkpoint} cannot be resumed: {' And '.join(wrong)} Resume it with the same settings and data, or "
                f"start a new training from its weights with --model_name_or_path {checkpoint}."
            )
        for each in differences(then["origin"], origin) if self.args.process_index == 0 else ():
            logger.warning("%s is resumed, but %s.", checkpoint, each)

    def save(self, folder: str, unlogged: dict[str, Any]) -> None:
        """Write the state into a checkpoint.

        Args:
            folder: the checkpoint.
            unlogged: values of this process since the last log line; they are saved for every process.
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
            path.parent.mkdir(parents=True, exist_ok=True)  # process 0 may not have created it yet
            torch.save(state, path)

    def load(self, folder: str) -> dict[str, Any] | None:
        """Load the state; returns the unlogged values, or None if they are not known."""
        path = self._file(folder)
        if not path.is_file():
            logger.warning("%s is missing: discriminator and memory start from scratch", path)
            return None
        # Each part moves to its own device: Adam's step count, for example, stays on the CPU.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.appraiser.load_state_dict(state)
        self.void_steps.load_state_dict(state["skipped"])
        as_then = "origin" not in state or not rewards_differ(state["origin"], self.origin)
        if "alarms" in state and as_then:  # an early version 0.1 saved neither
            self.alarms.load_state_dict(state["alarms"])
        if len(state["unlogged"]) != self.args.world_size:
            return None
        return state["unlogged"][self.args.process_index]

    def save_models(self, folder: str) -> None:
        """Write the discriminator beside the captioner, and the scorer into its folder `SCORER` if it is trained."""
        if self.args.discriminator_weight:
            self.appraiser.discriminator.discriminator.save(folder, scorer=scorer_id(self.appraiser.scorer))
        if self.appraiser.scorer_trainer is not None:
            clip_of(self.appraiser.scorer).save(Path(folder) / SCORER)

    def load_models(self, folder: str) -> None:
        """Load what `save_models` wrote."""
        if self.args.discriminator_weight:
            self.appraiser.discriminator.discriminator.load(folder)
        if self.appraiser.scorer_trainer is not None:
            saved = ClipScorer(Path(folder) / SCORER).to(self.args.device)
            self.appraiser.scorer.model.load_state_dict(saved.model.state_dict())
            self.appraiser.scorer.logit_scale = saved.logit_scale

    def _file(self, folder: str) -> Path:
        """Return the file: one for all processes if their state is equal, otherwise one per process."""
        a = self.args
        alone = a.memory_batches and not a.pool_other_processes and a.process_index
        return Path(folder) / (f"rl_state_{a.process_index}.pt" if alone else checkpoints.RL_STATE)
