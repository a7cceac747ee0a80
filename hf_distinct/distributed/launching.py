"""Training arguments that adapt to the processes and devices of the launcher, CPUs included."""

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
    """Seq2SeqTrainingArguments for one or several processes, with or without an accelerator.

    Printed or pickled (as in the ``training_args.bin`` of checkpoints), they contain no token.

    Raises:
        ValueError: the launcher was asked for another number of processes than it started.
    """

    def __post_init__(self) -> None:
        self._run_on_what_there_is()
        on_accelerator = torch.accelerator.is_available() and not self.use_cpu
        if self.accelerator_config is None and on_accelerator:  # copy batches to the GPU while it computes
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        super().__post_init__()
        check_number_of_processes(self.world_size)

    @property
    def device(self) -> torch.device:
        """The device of this process; a CPU has no index.

        Accelerate adds an index to the CPU of several processes ("cpu:1"), which `torch.load` does not accept.
        """
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    # Without repr=False, the dataclass would generate one that shows the token.
    __repr__ = Seq2SeqTrainingArguments.__str__

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: everything but the tokens."""
        return {**self.__dict__, **dict.fromkeys(TOKENS)}

    def _run_on_what_there_is(self) -> None:
        """Without an accelerator, let several processes use gloo; the launcher has no setting for it."""
        if torch.accelerator.is_available():
            return
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
            self.ddp_backend = self.ddp_backend or "gloo"  # with use_cpu, DeepSpeed would not be used
        else:
            self.use_cpu = True
            # The parent passes `ddp_timeout` on for accelerators only; gloo would wait for 30 minutes.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
