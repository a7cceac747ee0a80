"""Skip void steps, whose rewards, loss or gradient are not finite."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate.accelerator import Accelerator
from accelerate.utils import gather_object
from transformers.utils import logging

from hf_distinct.training.finite import REMEDY

logger = logging.get_logger(__name__)

SKIPPED_IN_A_ROW = 5
"""The training stops after this many void steps in a row."""


class VoidSteps:
    """Counts the skipped steps, and stops a training with too many.

    Args:
        accelerator: gives access to the other processes: a step that is void in one process is void in all.

    Attributes:
        count: number of steps skipped so far.
        in_a_row: number of consecutive steps skipped up to now.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.reset()

    def reset(self) -> None:
        """Forget earlier runs."""
        self.count = self.in_a_row = 0
        self._ids: list[str] | None = None  # image ids of the current step, if it is void

    @property
    def pending(self) -> bool:
        """Whether the current step is void."""
        return self._ids is not None

    def mark(self, step: int, image_ids: Sequence[object], reason: str) -> None:
        """Mark the current step as void; all processes must call this.

        Args:
            step: its number.
            image_ids: image ids of this process's batch.
            reason: what is wrong in this process; an empty string if nothing is.
        """
        gathered = gather_object([([str(each) for each in image_ids], reason)])
        self._ids = [image_id for theirs, _ in gathered for image_id in theirs]
        if self.accelerator.is_main_process:
            reasons = dict.fromkeys(reason for _, reason in gathered if reason)
            logger.warning("step %d is skipped: %s", step, "; ".join(reasons))

    def close(self, step: int) -> bool:
        """Count the current step, and return whether it was void.

        Raises:
            ValueError: `SKIPPED_IN_A_ROW` steps in a row were void; the message names the last one's images.
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
                "a reward is named above, fix it."
            )
        return True

    def state_dict(self) -> list[int]:
        """Return the two counts."""
        return [self.count, self.in_a_row]

    def load_state_dict(self, state: Sequence[int]) -> None:
        """Load the counts that `state_dict` returned."""
        self.count, self.in_a_row = state
