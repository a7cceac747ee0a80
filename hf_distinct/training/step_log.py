"""What a step measures and writes, kept for the next log line."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerState

from hf_distinct.generation.labels import rollout_figures
from hf_distinct.generation.policy import Rollouts
from hf_distinct.reporting.completions import completions_table, spread
from hf_distinct.rewards.appraiser import Appraisal
from hf_distinct.training.metering import Meter, peak_memory


class StepLog:
    """Collects the figures and the rollouts of steps on the device; a log line reads them.

    Args:
        accelerator: Gathers figures over processes.
        log_completions: Whether to keep the rollouts of the last step, and print them at each log line.
        num_completions_to_print: Number of rollouts to print. None: all of the last step.

    Attributes:
        meter: The figures since the last log line.
    """

    def __init__(
        self, accelerator: Accelerator, log_completions: bool = False, num_completions_to_print: int | None = None
    ) -> None:
        self.accelerator = accelerator
        self.log_completions = log_completions
        self.num_completions_to_print = num_completions_to_print
        self.meter = Meter(accelerator.device)
        self._last: tuple[dict[str, Any], Rollouts, Appraisal] | None = None

    def note(
        self,
        inputs: dict[str, Any],
        rollouts: Rollouts,
        appraisal: Appraisal,
        ends: list[int],
        terms: dict[str, Tensor],
    ) -> None:
        """Keep what one step measured and wrote; nothing is copied to the host.

        Args:
            inputs: The batch.
            rollouts: The rollouts of the batch.
            appraisal: Their rewards and advantages.
            ends: The captioner's end tokens.
            terms: The terms of the loss, scalar tensors by name.
        """
        figures = rollout_figures(rollouts.labels, rollouts.texts, ends, self.accelerator)
        for name, value in (appraisal.figures | terms | figures).items():
            self.meter.add(name, value)
        if self.log_completions:
            self._last = inputs, rollouts, appraisal

    def completions(self) -> list[dict[str, Any]]:
        """The rollouts of this process in the last step, a row for each; the rollouts of an image are adjacent.

        This copies rewards and advantages from the device, once for all.

        Returns:
            Rows with ``image_id``, ``reference`` (the first reference caption of the step), ``rollout``,
            ``reward/NAME`` of each reward (None where it does not apply) and of their ``total``, ``advantage``, and
            ``extra/COLUMN`` of what rewards gave to ``log_extra``: a number, or else a text.
        """
        if self._last is None:
            return []
        inputs, rollouts, appraisal = self._last
        count, images = len(rollouts.texts), len(inputs["captions"])
        names = [f"reward/{name}" for name in appraisal.rewards]
        values = torch.stack([*(each[:count] for each in appraisal.rewards.values()), appraisal.advantages]).T.tolist()
        applies = torch.stack([each[:count] for each in appraisal.applies.values()]).T.tolist()
        rows = []
        for place, text in enumerate(rollouts.texts):
            image = place * images // count
            *rewards, advantage = values[place]
            known = (value if where else None for value, where in zip(rewards, applies[place], strict=True))
            rows.append(
                {
                    "image_id": inputs["columns"]["image_id"][image],
                    "reference": inputs["captions"][image][0],
                    "rollout": text,
                    **dict(zip(names, known, strict=True)),
                    "advantage": advantage,
                    **{f"extra/{name}": _plain(values[place]) for name, values in appraisal.extras.items()},
                }
            )
        return rows

    def flush(self, state: TrainerState) -> dict[str, float]:
        """Print the last step's rollouts in the main process.

        Returns:
            Means since the last log line, over steps and processes, and the peak memory.
        """
        if self.accelerator.is_main_process and (rows := self.completions()):
            table = completions_table(spread(rows, self.num_completions_to_print), f"Step {state.global_step}")
            tqdm.write(table)  # to stdout as the Trainer's log line, above its progress bar
        self._last = None
        return {**self.meter.flush(self.accelerator), "memory/peak_gib": peak_memory(self.accelerator)}


def _plain(value: Any) -> float | str | None:
    return value if value is None or isinstance(value, (int, float)) else str(value)
