"""What a recipe shows, and what it leaves out."""

import subprocess
import sys

SCRIPT = """
import logging, os, sys
from transformers.utils.logging import get_logger
from hf_distinct.logs import show_logs
is_main = bool(os.fork())  # the other one is the child
if is_main:
    os.wait()
    print("-", file=sys.stderr)
show_logs("evaluate", main_process=is_main)
get_logger("hf_distinct.data.mining").info("mined")
get_logger("hf_distinct.data.collator").warning("a picture went bad")
logging.getLogger("evaluate").info("of the recipe")
logging.info("Parsing model identifier")  # as open_clip does
logging.warning("a warning of a library")
exec(compile("logging.getLogger('DeepSpeed').warning('Setting accelerator')", "real_accelerator.py", "exec"))
logging.getLogger("DeepSpeed").warning("a warning of DeepSpeed")
"""


def test_the_main_process_shows_our_words_and_others_only_what_they_know():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    other, main = (part.splitlines() for part in done.stderr.split("-\n"))
    ours = ["mined", "a picture went bad", "of the recipe"]
    assert main == [*ours, "a warning of a library", "a warning of DeepSpeed"]
    assert other == ["a picture went bad", "a warning of a library", "a warning of DeepSpeed"]
