"""The second of two processes waits for work of the first, which is gone; started by test_launching.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from accelerate import Accelerator

from hf_distinct.distributed.gathering import wait_for_first_process
from hf_distinct.runs.arguments import clear_errors


def main() -> None:
    """Wait for a file that is there, and for one that will never come."""
    accelerator, folder = Accelerator(cpu=True), Path(sys.argv[2])
    if accelerator.is_main_process:
        (folder / "done").touch()
    with clear_errors():
        wait_for_first_process((folder / "done").is_file)
        if accelerator.is_main_process:
            os._exit(0)
        wait_for_first_process((folder / "never").is_file)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as error:
        Path(sys.argv[2], "said").write_text(str(error))
