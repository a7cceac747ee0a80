"""Void steps: those whose rewards, loss or gradient are not finite are left out."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate.accelerator import Accelerator
from accelerate.utils import gather_object
from transformers.utils import logging

from hf_distinct.training.finite import REMEDY

logger = logging.get_logger(__name__)

SKIPPED_IN_A_ROW = 5
"""The training ends after so many void steps in a row."""


class VoidSteps:
    """Counts the steps that are left out, and ends a training of which too many are.

    Args:
        accelerator: knows the other processes: a step that is void in one is void in all.

    Attributes:
        count: how many were left out so far.
        in_a_row: how many of the last ones were.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.reset()

    def reset(self) -> None:
        """Know nothing of earlier runs."""
        self.count = self.in_a_row = 0
        self._ids: list[str] | None = None  # the images of the step at hand, if it is void

    @property
    def pending(self) -> bool:
        """Whether the step at hand is void."""
        return self._ids is not None

    def mark(self, step: int, image_ids: Sequence[object], reason: str) -> None:
        """Make the step at hand void; all processes call this together.

        Args:
            step: its number.
            image_ids: of the batch of this process.
            reason: what is wrong in this process; nothing: the empty string.
        """
        told = gather_object([([str(each) for each in image_ids], reason)])
        self._ids = [image_id for theirs, _ in told for image_id in theirs]
        if self.accelerator.is_main_process:
            reasons = dict.fromkeys(reason for _, reason in told if reason)
            logger.warning("step %d is left out: %s", step, "; ".join(reasons))

    def close(self, step: int) -> bool:
        """Count the step at hand; whether it was void.

        Raises:
            ValueError: `SKIPPED_IN_A_ROW` steps in a row were, with the image ids of the last one.
        """
        if self._ids is None:
            self.in_a_row = 0
            return False
        ids, self._ids = self._ids, None
        self.count += 1
        self.in_a_row += 1
        if self.in_a_row >= SKIPPED_IN_A_ROW:
            raise ValueError(
                f"{SKIPPED_IN_A_ROW} steps in a row had rewards, losses or gradients that are NaN or infinite (the "
                f"warnings above tell which), the last one step {step} with the images {', '.join(ids)}. {REMEDY}; if "
                "a reward is named above, mend it."
            )
        return True

    def state_dict(self) -> list[int]:
        """The two counts."""
        return [self.count, self.in_a_row]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Take up the counts that `state_dict` gave."""
        self.count, self.in_a_row = state
