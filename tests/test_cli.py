"""The command `hf-distinct`: it runs the recipes, from a checkout and from the installed wheel."""

from __future__ import annotations

import ast
import configparser
import contextlib
import dataclasses
import io
import os
import re
import runpy
import subprocess
import sys
import sysconfig
from collections import defaultdict
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from setuptools import find_packages
from transformers import Seq2SeqTrainingArguments

from hf_distinct import cli
from hf_distinct.runs.recipes import COMMAND, settings_file

REPOSITORY = Path(__file__).parents[1]
CHECKOUT = re.compile(r"recipes/(?!benchmarks/)[\w/]+\.(py|md)")
"""A path that only a checkout has. Benchmarks need one anyway, and settings files are found without one."""
DIFFERENT = {
    "output_dir", "model", "model_name_or_path", "scorer", "guidance", "batch_size", "seed", "max_steps",
    "dataset", "num_neighbours",
}  # fmt: skip
"""Settings that mean another thing in another recipe."""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_recipe(name):
    script = Path(cli.command_line(name, [])[-1])
    assert script.is_file() and script.parent == REPOSITORY / "recipes"


def test_no_recipe_hides_a_library():
    # A script's folder comes first on Python's path: recipes/evaluate.py was found where a reward imported `evaluate`.
    names = {path.stem for path in (REPOSITORY / "recipes").rglob("*.py")}
    assert not {name for name in names if PathFinder.find_spec(name, [sysconfig.get_path("purelib")])}


def test_what_several_processes_share_is_launched_and_the_rest_is_not():
    script = str(REPOSITORY / "recipes" / "train.py")
    launch = [sys.executable, "-m", "hf_distinct.runs.launch"]
    assert cli.command_line("train", ["--max_steps", "3"]) == [*launch, script, "--max_steps", "3"]
    zero2 = str(REPOSITORY / "recipes" / "accelerate" / "zero2.yaml")
    told = ["--accelerate_config=zero2", "--max_steps", "3", "--num_processes", "2"]
    expected = [*launch, "--config_file", zero2, "--num_processes", "2", script, "--max_steps", "3"]
    assert cli.command_line("train", told) == expected
    assert cli.command_line("caption", ["x"]) == [*launch, str(REPOSITORY / "recipes" / "caption.py"), "x"]
    assert cli.command_line("push", ["x"]) == [sys.executable, str(REPOSITORY / "recipes" / "push.py"), "x"]


def test_help_is_shown_once_however_many_processes_would_start():
    script = str(REPOSITORY / "recipes" / "train.py")
    assert cli.command_line("train", ["--num_processes", "2", "--help"]) == [sys.executable, script, "--help"]


@pytest.fixture(scope="module", params=cli.COMMANDS)
def shown_help(request) -> str:
    """What `hf-distinct COMMAND --help` shows, without the start of a process."""
    shown = io.StringIO()
    script = cli.command_line(request.param, ["--help"])[1]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        patch.setenv(COMMAND, f"hf-distinct {request.param}")
        patch.setattr(sys, "argv", [script, "--help"])
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0
    assert shown.getvalue().startswith(f"usage: hf-distinct {request.param} [settings.yaml] ")
    return shown.getvalue()


def test_help_has_examples_to_copy_and_names_nothing_that_needs_a_checkout(shown_help):
    about, _ = shown_help.split("\noptions:\n")
    examples = re.findall(r"^    hf-distinct ([a-z-]+)", about, re.MULTILINE)
    assert examples and set(examples) <= set(cli.COMMANDS)
    assert not CHECKOUT.search(shown_help)
    assert all(settings_file(name).is_file() for name in re.findall(r"^    hf-distinct .* (\S+\.yaml)", about))


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_setting_has_a_help_that_stands_by_itself(name):
    helps = own_helps(name)
    assert helps
    for setting, text in helps.items():
        assert re.match(r"[A-Z].{10}", text) and text.endswith("."), f"--{setting}: {text}"


def test_a_setting_of_several_recipes_has_one_help():
    found = defaultdict(set)
    for name in cli.COMMANDS:
        for setting, text in own_helps(name).items():
            found[setting].add(text.split(" Default")[0])
    assert {setting for setting, texts in found.items() if len(texts) > 1} == DIFFERENT


def own_helps(name: str) -> dict[str, str]:
    """The help of the settings that a recipe itself defines."""
    recipe = runpy.run_path(cli.command_line(name, [])[-1], run_name="recipe")
    theirs = {each.name: each.metadata for each in dataclasses.fields(Seq2SeqTrainingArguments)}
    kinds = [recipe[name] for name in ("Settings", "Training") if name in recipe]
    own = {each.name: each.metadata for kind in kinds for each in dataclasses.fields(kind)}
    return {key: metadata["help"] for key, metadata in own.items() if metadata != theirs.get(key)}


def test_no_text_of_the_package_or_of_a_command_names_a_file_of_a_checkout():
    recipes = [REPOSITORY / "recipes" / Path(cli.command_line(name, [])[-1]).name for name in cli.COMMANDS]
    found = {
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {named[0]}"
        for path in [*(REPOSITORY / "hf_distinct").rglob("*.py"), *recipes]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (named := CHECKOUT.search(node.value))
    }
    assert found == set()


@pytest.mark.parametrize("script", ["ship.py", "estimate_cost.py", "space/app.py"])
def test_what_needs_a_checkout_says_so(script):
    about = ast.get_docstring(ast.parse((REPOSITORY / "recipes" / script).read_text(encoding="utf-8")))
    assert about is not None and "needs a checkout" in about


def test_an_error_of_a_launched_recipe_is_the_last_line():
    command = cli.command_line("mine", ["--batch_size", "0"])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: batch_size=0 must be at least 1." in done.stderr.splitlines()[-1]


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


@pytest.mark.slow
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
    assert run(*command, "mine", "--help").startswith("usage: hf-distinct mine [settings.yaml]")
    few = ["--max_steps", "1", "--train_size", "16", "--batch_size", "8", "--output_dir", "clip"]
    run(*command, "train-clip", "judge/1_drilled", "--curriculum_steps", "0", *few)
    assert (tmp_path / "clip" / "metrics.json").is_file()
