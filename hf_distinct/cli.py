"""The command ``hf-distinct``, which runs the recipes with or without a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hf_distinct.runs.recipes import COMMAND, RECIPES, settings_names

COMMANDS = {
    "train": "Train a captioner by reinforcement learning.",
    "warm-up": "Train a captioner by teacher forcing, as a start for reinforcement learning.",
    "train-clip": "Train or fine-tune a CLIP that serves as scorer or judge.",
    "train-grammar": "Train the judge of grammar for `hf-distinct evaluate --grammar`.",
    "distill": "Train an image encoder of transformers to imitate a pretrained model of timm.",
    "mine": "Embed a dataset with CLIP, and mine the similar images of each image.",
    "evaluate": "Measure captioners, or captions from files, side by side.",
    "caption": "Caption the pictures of a folder, of tar shards, or of parquet files.",
    "push": "Push a trained captioner, or a mined folder, to the Hub.",
    "ablation": "Train several settings with several seeds, and compare them.",
    "make-example": "Write a small folder of captioned pictures to try `--dataset` with.",
}
SCRIPTS = {"evaluate": "evaluate_captions.py"}
"""Recipes whose file has another name than their command: one called `evaluate.py` would hide that library."""
LAUNCHED = ("train", "warm-up", "train-clip", "mine", "caption")
"""Commands that run through ``accelerate launch``, in as many processes as it is configured for."""

USAGE = """usage: hf-distinct COMMAND [SETTINGS.yaml] [--name value ...]

{commands}

`hf-distinct COMMAND --help` lists the settings of a command. SETTINGS.yaml is a file of yours, or one of these:
{settings}.

{launched} run through `accelerate launch`, which takes two more settings:
  --accelerate_config NAME_OR_FILE  Launch configuration: a YAML file, or one of these:
                                    {configs}.
  --num_processes N                 Number of processes, in place of that of the configuration.

The recipes behind these commands are in {recipes}."""


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
    os.environ[COMMAND] = f"hf-distinct {name}"
    if os.name == "nt":  # where exec would come back at once
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)


def usage() -> str:
    """What ``hf-distinct --help`` shows."""
    width = max(map(len, COMMANDS))
    return USAGE.format(
        commands="\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()),
        settings=textwrap.fill(", ".join(settings_names()), 118, initial_indent="  ", subsequent_indent="  "),
        launched=" and ".join([", ".join(LAUNCHED[:-1]), LAUNCHED[-1]]),
        configs=", ".join(configs()),
        recipes=RECIPES,
    )


def configs() -> dict[str, Path]:
    """The launch configurations that come with hf_distinct, by name."""
    return {path.stem: path for path in sorted((RECIPES / "accelerate").glob("*.yaml"))}


def command_line(name: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs a recipe; its ``--help`` needs no launcher.

    Args:
        name: one of `COMMANDS`.
        arguments: those of the recipe, with those of the launcher among them.

    Raises:
        ValueError: there is no such launch configuration, or the command does not run through the launcher.
    """
    rest, of_launcher = list(arguments), []
    for option, launchers in (("--accelerate_config", "--config_file"), ("--num_processes", "--num_processes")):
        value, rest = _take(option, rest)
        if value is None:
            continue
        if name not in LAUNCHED:
            raise ValueError(f"{option} has no effect: this command runs in one process. Leave it out.")
        of_launcher += [launchers, _config_file(value) if option == "--accelerate_config" else value]
    script = str(RECIPES / SCRIPTS.get(name, f"{name.replace('-', '_')}.py"))
    launched = name in LAUNCHED and not {"-h", "--help"} & {*rest}
    launcher = ["-m", "hf_distinct.runs.launch", *of_launcher] if launched else []
    return [sys.executable, *launcher, script, *rest]


def _take(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of ``--option value`` or ``--option=value``, and the arguments without it."""
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
        f"--accelerate_config {value} is neither a file nor one of {', '.join(configs())}. Name a launch "
        "configuration, such as `accelerate config --config_file FILE` writes."
    )


if __name__ == "__main__":
    sys.exit(main())
