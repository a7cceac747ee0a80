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
exec(compile("logging.getLogger('DeepSpeed').warning('Setting accelerator')", "real_accelerator.py", "exec"))
logging.getLogger("DeepSpeed").warning("a warning of DeepSpeed")
"""


def shown(process: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, process], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_the_main_process_shows_our_words_and_the_warnings_of_libraries():
    ours = ["mined", "a picture went bad", "of the recipe"]
    assert shown("main") == [*ours, "a warning of a library", "a warning of DeepSpeed"]


def test_other_processes_show_what_only_they_know():
    assert shown("other") == ["a picture went bad", "a warning of a library", "a warning of DeepSpeed"]
