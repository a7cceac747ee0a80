"""What a step measures and writes, kept for the next log line."""

from __future__ import annotations

from typing import Any

from accelerate.accelerator import Accelerator
from torch import Tensor
from transformers import TrainerState
from transformers.utils import logging

from hf_distinct.generation.labels import rollout_figures
from hf_distinct.generation.policy import Rollouts
from hf_distinct.text.escaping import plain
from hf_distinct.training.metering import Meter, peak_memory

logger = logging.get_logger(__name__)


class StepLog:
    """Collects figures and captions of steps.

    Args:
        accelerator: knows the other processes.
        shown: number of rollouts that a log line shows.

    Attributes:
        meter: holds what has been measured since the last log line.
        samples: the first rollout of each image of the last step, and the image's first reference.
    """

    def __init__(self, accelerator: Accelerator, shown: int) -> None:
        self.accelerator = accelerator
        self.shown = shown
        self.meter = Meter(accelerator.device)
        self.samples: list[tuple[str, str]] = []

    def note(self, inputs: dict[str, Any], rollouts: Rollouts, ends: list[int], figures: dict[str, Tensor]) -> None:
        """Keep what one step measured and wrote.

        Args:
            inputs: the batch.
            rollouts: what was written for it.
            ends: the captioner's end tokens.
            figures: scalar tensors by name.
        """
        figures = figures | rollout_figures(rollouts.labels, rollouts.texts, ends, self.accelerator)
        for name, value in figures.items():
            self.meter.add(name, value)
        first = rollouts.texts[:: max(len(rollouts.texts) // max(len(inputs["captions"]), 1), 1)]
        self.samples = [(rollout, texts[0]) for rollout, texts in zip(first, inputs["captions"], strict=True)]

    def flush(self, state: TrainerState) -> dict[str, float]:
        """Means since the last log line, over steps and processes, and the peak of memory; show samples."""
        if self.accelerator.is_main_process:
            for rollout, reference in self.samples[: self.shown]:
                said = plain(rollout), plain(reference)
                logger.info("step %d | rollout: %s | reference: %s", state.global_step, *said)
        return {**self.meter.flush(self.accelerator), "memory/peak_gib": peak_memory(self.accelerator)}
