"""Recipes as a person runs them, each in a process of its own; but in one that has made their imports already.

Those take most of the time of a recipe on tiny models. Here they are made once, by the server that multiprocessing has
for that; a run is a fork of it, and so is a run of a recipe that a recipe starts.
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest.mock import patch

RECIPES = Path(__file__).parents[1] / "recipes"
IMPORTS = [
    "hf_distinct.trainer", "hf_distinct.gallery", "hf_distinct.inference.captioning", "hf_distinct.hub.transfer",
    "peft",
]  # fmt: skip
# What is read while these are imported.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPES.parent),
}  # fmt: skip
TIMEOUT = 500
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(IMPORTS)
subprocess_run = subprocess.run


@cache
def module(name: str) -> ModuleType:
    """A recipe as a module, for what is tested of its parts."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


def run(recipe: str, *arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a recipe to its end, which has to be a failure, told in words, if it ``fails``."""
    command = [str(RECIPES / recipe), *map(str, arguments)]
    with TemporaryDirectory() as folder, patch.dict(os.environ, ENVIRONMENT):
        told = [Path(folder, name) for name in ("stdout", "stderr")]
        code = _fork(command, os.environ, *map(str, told))
        done = subprocess.CompletedProcess(command, code, *(file.read_text() for file in told))
    assert (done.returncode != 0) == fails, done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_together(
    script: str, arguments: Sequence[Sequence[object]], environments: Sequence[Mapping[str, str]]
) -> str:
    """Run a script in several processes that need each other, until all have ended well; in any case none is left.

    Returns what they said.
    """
    processes = []
    with TemporaryDirectory() as folder, patch.dict(os.environ, ENVIRONMENT):
        try:
            for rank, (own, environment) in enumerate(zip(arguments, environments, strict=True)):
                told = [f"{folder}/{rank}.{name}" for name in ("stdout", "stderr")]
                command = [script, *map(str, own)]
                processes.append(start(command, environment, *told))
            for process in processes:
                process.join(TIMEOUT)
                said = "\n".join(file.read_text() for file in sorted(Path(folder).glob("*.stderr")))
                assert process.exitcode == 0, said  # of all: who failed first?
            return "".join(file.read_text() for file in sorted(Path(folder).iterdir()))
        finally:
            for process in processes:
                process.kill()


def start(command: Sequence[str], environment: Mapping[str, str], stdout: str, stderr: str) -> ForkServerProcess:
    """Start a script with its arguments. What it says is added to the files."""
    process = SERVER.Process(target=_become, args=(list(command), dict(environment), stdout, stderr))
    process.start()
    return process


def _fork(command: Sequence[str], environment: Mapping[str, str], stdout: str, stderr: str) -> int:
    """Run a script to its end; returns its status."""
    process = start(command, environment, stdout, stderr)
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{command} took more than {TIMEOUT} s")
    return process.exitcode


def _become(command: list[str], environment: dict[str, str], *told: str) -> None:
    for number, file in enumerate(told, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    subprocess.run = _run_from_recipe  # type: ignore[assignment]
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing would leave them out


def _run_from_recipe(command: Sequence[str], *arguments: Any, **how: Any) -> subprocess.CompletedProcess[Any]:
    """What `subprocess.run` is to a recipe; another recipe, whose output goes to a file, is forked."""
    if command[0] != sys.executable or Path(command[1]).parent != RECIPES:
        return subprocess_run(command, *arguments, **how)
    assert how["stderr"] == subprocess.STDOUT
    return subprocess.CompletedProcess(command, _fork(command[1:], how["env"], *[how["stdout"].name] * 2))
