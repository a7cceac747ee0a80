"""The first of two processes waits for the second, which is gone; started by test_launching.py."""

from __future__ import annotations

import os
import sys

import torch
from accelerate import Accelerator

from hf_distinct.distributed.gathering import gather_rows
from hf_distinct.runs.arguments import clear_errors


def main() -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.wait_for_everyone()
    if accelerator.process_index == 1:
        os._exit(0)
    with clear_errors():
        gather_rows(torch.ones(1, 2), accelerator)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as error:
        with open(os.path.join(sys.argv[2], "said"), "w") as file:
            file.write(str(error))
