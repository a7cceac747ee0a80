"""The command `hf-distinct`: it runs the recipes, from a checkout and from the installed wheel."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from setuptools import find_packages

from hf_distinct import cli

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_recipe(name):
    script = Path(cli.command_line(name, [])[-1])
    assert script.is_file() and script.parent == REPOSITORY / "recipes"


def test_no_recipe_hides_a_library():
    # A script's folder comes first on Python's path: recipes/evaluate.py was found where a reward imported `evaluate`.
    names = {path.stem for path in (REPOSITORY / "recipes").rglob("*.py")}
    assert not {name for name in names if PathFinder.find_spec(name, [sysconfig.get_path("purelib")])}


def test_what_trains_is_launched_and_the_rest_is_not():
    script = str(REPOSITORY / "recipes" / "train.py")
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    assert cli.command_line("train", ["--max_steps", "3"]) == [*launch, script, "--max_steps", "3"]
    zero2 = str(REPOSITORY / "recipes" / "accelerate" / "zero2.yaml")
    told = ["--accelerate_config=zero2", "--max_steps", "3", "--num_processes", "2"]
    expected = [*launch, "--config_file", zero2, "--num_processes", "2", script, "--max_steps", "3"]
    assert cli.command_line("train", told) == expected
    assert cli.command_line("push", ["x"]) == [sys.executable, str(REPOSITORY / "recipes" / "push.py"), "x"]


def test_a_launch_file_of_ones_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.touch()
    assert str(own) in cli.command_line("train", ["--accelerate_config", str(own)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "there is no command 'trian'"),
        (["train", "--accelerate_config", "zero4"], "neither a file nor one of ddp, one_process, zero1"),
        (["train", "--num_processes"], "--num_processes needs a value"),
        (["push", "--accelerate_config", "zero2"], "--accelerate_config has no effect"),
    ],
)
def test_what_it_cannot_do_is_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err.splitlines()[0]


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)
    assert cli.main([]) == 0 and capsys.readouterr().out == shown


def test_all_packages_are_in_the_wheel():
    config = configparser.ConfigParser()
    config.read(REPOSITORY / "setup.cfg")
    listed = config["options"]["packages"].split()
    found = find_packages(str(REPOSITORY), include=["hf_distinct", "hf_distinct.*"])
    assert sorted(listed) == sorted([*found, "hf_distinct.recipes"])


def test_the_installed_wheel_trains_and_captions_from_another_folder(tmp_path):
    def run(*command: str, cwd: Path = tmp_path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
        found = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        assert found.returncode == 0, found.stdout + found.stderr
        return found.stdout

    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "-q", str(REPOSITORY), "--no-deps", "--no-build-isolation", "-w", "wheels")
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    run(*pip, "install", "-q", "--no-deps", "--target", "site", str(wheel))
    command = (sys.executable, "-m", "hf_distinct.cli")
    assert str(tmp_path / "site" / "hf_distinct" / "recipes") in run(*command, "--help")
    settings = ["--max_steps", "2", "--train_size", "64", "--test_size", "8", "--output_dir", "trained"]
    run(*command, "train", "--accelerate_config", "one_process", *settings)
    run(*command, "caption", "trained", "--model", "trained", "--output_dir", "captions")
    assert (tmp_path / "captions" / "captions.jsonl").is_file()
