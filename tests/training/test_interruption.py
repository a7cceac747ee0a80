"""What asks a run to stop leaves a checkpoint; what is to be ignored is ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import forked
import pytest
from transformers import TrainerCallback

from hf_distinct.files import checkpoints
from hf_distinct.training.interruption import Interruption


class Sender(TrainerCallback):
    """Sends a signal to this process when a step begins."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(make_trainer, tmp_path, caplog, name):
    number = getattr(signal, name)
    trainer = make_trainer(tmp_path, max_steps=9)
    trainer.add_callback(Sender(number, 2))
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 128 + number
    assert checkpoints.choose("true", tmp_path) == str(tmp_path / "checkpoint-2")
    assert f"stopped by {name} after step 2" in caplog.text
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_hangup_stays_ignored(make_trainer, tmp_path):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer(tmp_path, max_steps=3)
        trainer.add_callback(Sender(signal.SIGHUP, 2))
        trainer.train()
        assert trainer.state.global_step == 3
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


ASK = """
import os, sys
os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "no")  # as TrainingArguments does
from hf_distinct.training.interruption import was_launched
print(was_launched())
"""


@pytest.mark.parametrize(
    ("environment", "launched"),
    [({}, False), ({"ACCELERATE_MIXED_PRECISION": "no"}, True), ({"TORCHELASTIC_RUN_ID": "none"}, True)],
)
def test_a_launcher_is_known_by_what_the_process_was_born_with(environment, launched):
    names = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
    rest = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", ASK], env=rest | environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(launched), done.stderr


def test_a_parent_that_is_no_launcher_may_go(monkeypatch):
    interruption = Interruption()
    monkeypatch.setattr("hf_distinct.training.interruption.was_launched", lambda: False)
    with interruption.watched():
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert interruption.asked == 0
    monkeypatch.undo()
    monkeypatch.setattr("hf_distinct.training.interruption.was_launched", lambda: True)
    with interruption.watched():
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert interruption.asked == signal.SIGTERM


RECIPE = """
import signal, sys
from hf_distinct.runs.arguments import clear_errors
_, number, *nohup = sys.argv
signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs in the background ignores
signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
with clear_errors():
    try:
        signal.raise_signal(int(number))
        print("went on")
    finally:
        print("closed")
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.py").write_text(RECIPE)
    return str(tmp_path / "recipe.py")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_any_recipe_ends_by_a_signal_from_inside_and_in_one_line(recipe, name):
    number = getattr(signal, name)
    done = forked.run(recipe, int(number), fails=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "closed\n", f"recipe.py: stopped by {name}\n")


def test_a_recipe_under_nohup_goes_on_after_a_hangup(recipe):
    assert forked.run(recipe, int(signal.SIGHUP), "nohup").stdout == "went on\nclosed\n"


CHILD = """
import os, signal, time
from hf_distinct.training.interruption import ended_from_inside
with ended_from_inside():
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGUSR1)  # its parent's business
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_of_a_recipe_ends_on_sigterm_without_its_parents_clean_up(tmp_path):
    (tmp_path / "recipe.py").write_text(CHILD)
    done = forked.run(str(tmp_path / "recipe.py"))
    assert (done.stdout, done.stderr) == ("143\n", "")
