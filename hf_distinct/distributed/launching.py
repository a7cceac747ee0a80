"""Training arguments that run on the processes and devices that a launcher gives, CPUs included."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from transformers import Seq2SeqTrainingArguments

from hf_distinct.distributed.gathering import check_number_of_processes

TOKENS = ("hub_token", "push_to_hub_token")


class LaunchedArguments(Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments of a run in one or several processes, with or without an accelerator.

    Neither what is printed nor what is pickled, such as the ``training_args.bin`` of every checkpoint, holds a token.

    Raises:
        ValueError: the launcher was asked for another number of processes than there are.
    """

    def __post_init__(self) -> None:
        self._run_on_what_there_is()
        on_accelerator = torch.accelerator.is_available() and not self.use_cpu
        if self.accelerator_config is None and on_accelerator:  # batches are copied to a GPU while it works
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        super().__post_init__()
        check_number_of_processes(self.world_size)

    @property
    def device(self) -> torch.device:
        """The device of this process; a CPU without a number.

        Accelerate numbers the CPU of several processes ("cpu:1"), and `torch.load` knows no such place.
        """
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    # A dataclass writes one that shows the token, unless it is told repr=False.
    __repr__ = Seq2SeqTrainingArguments.__str__

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: all but the token."""
        return {**self.__dict__, **dict.fromkeys(TOKENS)}

    def _run_on_what_there_is(self) -> None:
        """Without an accelerator, several processes meet over gloo; the launcher has no setting for it."""
        if torch.accelerator.is_available():
            return
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
            self.ddp_backend = self.ddp_backend or "gloo"  # use_cpu would take DeepSpeed for plain processes
        else:
            self.use_cpu = True
            # The parent gives `ddp_timeout` to accelerators only; gloo would wait for half an hour.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
