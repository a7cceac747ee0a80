"""`accelerate launch`, without its traceback after the error message of the launched recipe."""

from __future__ import annotations

import subprocess
import sys

from accelerate.commands.launch import main

if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        # For a recipe that was ended by a signal, the exit status is that of a shell.
        sys.exit(error.returncode if error.returncode > 0 else 128 - error.returncode)
