"""What a recipe shows, and what it leaves out."""

import subprocess
import sys

SCRIPT = """
import logging, sys
from transformers.utils.logging import get_logger
from hf_distinct.logs import show_logs
show_logs("evaluate", main_process=sys.argv[1] == "main")
get_logger("hf_distinct.data.mining").info("mined\\x1b[2J")
get_logger("hf_distinct.data.collator").warning("a picture went bad")
logging.getLogger("evaluate").info("of the recipe")
logging.info("Parsing model identifier")  # as open_clip does
logging.warning("a warning\\u202e of a library")
exec(compile("logging.getLogger('DeepSpeed').warning('Setting accelerator')", "real_accelerator.py", "exec"))
logging.getLogger("DeepSpeed").warning("a warning of DeepSpeed")
"""


def shown(process: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, process], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_the_main_process_shows_our_words_and_the_warnings_of_libraries():
    ours = ["mined", "a picture went bad", "of the recipe"]
    assert shown("main") == [*ours, "a warning  of a library", "a warning of DeepSpeed"]


def test_other_processes_show_what_only_they_know():
    assert shown("other") == ["a picture went bad", "a warning  of a library", "a warning of DeepSpeed"]


def test_a_settings_file_and_an_error_cannot_command_the_terminal(tmp_path):
    (tmp_path / "a.yaml").write_text('"x\\e[2J": 1\n')
    script = "import sys; from hf_distinct.arguments import *\nwith clear_errors():\n"
    ends = ("    parse_settings(argv=[sys.argv[1]])", "    open('/none/a\\x1b[2J\\n.png')")
    for end, said in zip(ends, ("unknown setting x", "No such file or directory: '/none/a"), strict=True):
        done = subprocess.run([sys.executable, "-c", script + end, str(tmp_path / "a.yaml")], capture_output=True)
        assert done.returncode and said in done.stderr.decode() and b"\x1b" not in done.stderr
