"""The command ``hf-distinct``: the recipes, for whoever has installed the package and has no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
RECIPES = _PACKAGE / "recipes" if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent / "recipes"
"""Where the recipes are: in the installed package, or beside it in a checkout."""

COMMANDS = {
    "train": "Train a captioner by reinforcement learning.",
    "warm-up": "Train a captioner by teacher forcing, as a start for reinforcement learning.",
    "train-clip": "Train a CLIP, as a scorer or as a judge.",
    "train-grammar": "Train the judge of grammar that `evaluate --grammar` measures with.",
    "distill": "Teach a stock image encoder what a pretrained image model of timm sees.",
    "mine": "Embed a data set and find the similar images of each image.",
    "evaluate": "Measure captioners, or captions from a file.",
    "caption": "Caption a folder of pictures.",
    "push": "Push a trained captioner or a mined folder to the Hub.",
    "ablation": "Train and compare several settings.",
}
SCRIPTS = {"evaluate": "evaluate_captions.py"}
"""The recipes whose name is not that of their command: one called `evaluate.py` would hide that library."""
LAUNCHED = ("train", "warm-up", "train-clip")
"""Those that `accelerate launch` starts, on as many processes as it is configured for."""

USAGE = """usage: hf-distinct COMMAND [--accelerate_config NAME_OR_FILE] [--num_processes N] [ARGUMENTS ...]

{commands}

`hf-distinct COMMAND --help` lists the arguments of a command. {launched} run through `accelerate launch`:
--accelerate_config chooses one of {configs}, or a file; --num_processes overrides its number of processes.
The recipes are in {recipes}."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a recipe.

    Args:
        argv: the arguments; None: those of this process.

    Returns:
        The exit status.
    """
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())  # noqa: T201
        return 0
    if name not in COMMANDS:
        print(f"hf-distinct: there is no command {name!r}.\n{usage()}", file=sys.stderr)  # noqa: T201
        return 2
    try:
        command = command_line(name, rest)
    except ValueError as error:
        print(f"hf-distinct {name}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    if os.name == "nt":  # where exec would come back at once
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)


def usage() -> str:
    """What ``hf-distinct --help`` shows."""
    width = max(map(len, COMMANDS))
    return USAGE.format(
        commands="\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()),
        launched=", ".join(LAUNCHED),
        configs=", ".join(configs()),
        recipes=RECIPES,
    )


def configs() -> dict[str, Path]:
    """The launch files of the recipes, by name."""
    return {path.stem: path for path in sorted((RECIPES / "accelerate").glob("*.yaml"))}


def command_line(name: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a recipe.

    Args:
        name: one of `COMMANDS`.
        arguments: those of the recipe, and those of the launcher among them.

    Raises:
        ValueError: there is no such launch file, or nothing to launch.
    """
    rest, of_launcher = list(arguments), []
    for option, launchers in (("--accelerate_config", "--config_file"), ("--num_processes", "--num_processes")):
        value, rest = _take(option, rest)
        if value is None:
            continue
        if name not in LAUNCHED:
            raise ValueError(f"{option} does nothing here: this command runs in one process.")
        of_launcher += [launchers, _config_file(value) if option == "--accelerate_config" else value]
    script = str(RECIPES / SCRIPTS.get(name, f"{name.replace('-', '_')}.py"))
    launcher = ["-m", "accelerate.commands.launch", *of_launcher] if name in LAUNCHED else []
    return [sys.executable, *launcher, script, *rest]


def _take(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of an option, as ``--option value`` or ``--option=value``, and what is left without it."""
    for place, each in enumerate(arguments):
        if each.startswith(f"{option}="):
            return each.partition("=")[2], arguments[:place] + arguments[place + 1 :]
        if each == option:
            if place + 1 == len(arguments):
                raise ValueError(f"{option} needs a value.")
            return arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    return None, arguments


def _config_file(value: str) -> str:
    if value in configs():
        return str(configs()[value])
    if Path(value).is_file():
        return value
    raise ValueError(
        f"--accelerate_config {value!r} is neither a file nor one of {', '.join(configs())}, which hf_distinct has."
    )


if __name__ == "__main__":
    sys.exit(main())
