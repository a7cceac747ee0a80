"""What a recipe shows, and what it leaves out."""

import os
import select
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from hf_distinct.runs.logs import lasting_output

SCRIPT = """
import logging, sys
from transformers.utils.logging import get_logger
from hf_distinct.runs.logs import show_logs
show_logs("evaluate", main_process=sys.argv[1] == "main")
get_logger("hf_distinct.data.mining").info("mined\\x1b[2J")
get_logger("hf_distinct.data.collator").warning("a picture went bad")
logging.getLogger("evaluate").info("of the recipe")
logging.info("Parsing model identifier")  # as open_clip does
logging.warning("a warning\\u202e of a library")
exec(compile("logging.getLogger('DeepSpeed').warning('Setting accelerator')", "real_accelerator.py", "exec"))
logging.getLogger("DeepSpeed").warning("a warning of DeepSpeed")
"""


@pytest.fixture
def shown(tmp_path):
    """What a process shows, the main one or another."""
    (tmp_path / "script.py").write_text(SCRIPT)
    return lambda process: forked.run(str(tmp_path / "script.py"), process).stderr.splitlines()


def test_the_main_process_shows_our_words_and_the_warnings_of_libraries(shown):
    ours = ["mined", "a picture went bad", "of the recipe"]
    assert shown("main") == [*ours, "a warning  of a library", "a warning of DeepSpeed"]


def test_other_processes_show_what_only_they_know(shown):
    assert shown("other") == ["a picture went bad", "a warning  of a library", "a warning of DeepSpeed"]


def test_a_settings_file_and_an_error_cannot_command_the_terminal(tmp_path):
    (tmp_path / "a.yaml").write_text('"x\\e[2J": 1\n')
    script = "import sys; from hf_distinct.runs.arguments import *\nwith clear_errors():\n"
    ends = ("    parse_settings(argv=[sys.argv[1]])", "    open('/none/a\\x1b[2J\\n.png')")
    for end, said in zip(ends, ("unknown setting x", "No such file or directory: '/none/a"), strict=True):
        (tmp_path / "script.py").write_text(script + end)
        told = forked.run(str(tmp_path / "script.py"), tmp_path / "a.yaml", fails=True).stderr
        assert said in told and "\x1b" not in told


LASTING = """
import pathlib, sys
from hf_distinct.runs.logs import lasting_output
with lasting_output():
    for _ in range(3):
        print("größe 中文", flush=True)
        print("bar", file=sys.stderr, flush=True)
    pathlib.Path(sys.argv[1]).touch()
"""


def run_lasting(done: Path, environment: dict[str, str] | None = None, **streams) -> subprocess.CompletedProcess:
    """Run `LASTING`, and see that it did all of its work."""
    ran = subprocess.run(
        [sys.executable, "-c", LASTING, str(done)], env={**os.environ, **(environment or {})},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )  # fmt: skip
    assert ran.returncode == 0 and done.exists()
    return ran


def test_a_terminal_of_ascii_shows_all_else_as_escapes(tmp_path):
    shown = run_lasting(tmp_path / "done", {"PYTHONIOENCODING": "ascii"}).stdout
    assert shown == b"gr\\xf6\\xdfe \\u4e2d\\u6587\n" * 3


@pytest.mark.parametrize("unread", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_work_goes_on_when_nobody_reads_any_more(tmp_path, unread):
    reader, writer = os.pipe()
    os.close(reader)
    ran = run_lasting(tmp_path / "done", **dict.fromkeys(unread, writer))
    os.close(writer)
    assert ran.stderr in (None, b"bar\n" * 3)


WAITING = """
import sys
from hf_distinct.runs.logs import lasting_output
with lasting_output():
    print("ready")
    sys.stdin.readline()
"""


def test_an_unbuffered_line_is_shown_at_once():
    command, environment = [sys.executable, "-c", WAITING], {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        shown, _, _ = select.select([process.stdout], [], [], 60)
        process.stdin.close()
        assert shown and process.stdout.readline() == b"ready\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_named_once(tmp_path):
    with open("/dev/full", "wb") as full:
        shown = run_lasting(tmp_path / "done", stdout=full).stderr
    assert shown.count(b"No space left on device") == 1 and shown.count(b"bar") == 3


def test_streams_of_others_stay(capsys):
    before = sys.stdout, sys.stderr
    with lasting_output():
        assert (sys.stdout, sys.stderr) == before
