"""What a recipe shows, and what it leaves out."""

import subprocess
import sys

SCRIPT = """
import logging, sys
from transformers.utils.logging import get_logger
from hf_distinct.logs import show_logs
show_logs("evaluate", main_process=sys.argv[1] == "main")
get_logger("hf_distinct.data.mining").info("mined")
get_logger("hf_distinct.data.collator").warning("a picture went bad")
logging.getLogger("evaluate").info("of the recipe")
logging.info("Parsing model identifier")  # as open_clip does
logging.warning("a warning of a library")
from deepspeed.accelerator import get_accelerator
get_accelerator()
"""


def shown(process: str) -> list[str]:
    """The lines of both streams that are our own or known; DeepSpeed warns on stdout."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, process], capture_output=True, text=True, check=True)
    return [*done.stderr.splitlines(), *done.stdout.splitlines()]


def test_the_main_process_shows_our_words_and_the_warnings_of_libraries():
    assert shown("main") == ["mined", "a picture went bad", "of the recipe", "a warning of a library"]


def test_other_processes_show_what_only_they_know():
    assert shown("other") == ["a picture went bad", "a warning of a library"]
