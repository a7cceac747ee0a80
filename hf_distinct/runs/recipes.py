"""Where the recipes and their settings files are, and by which command the recipe that runs was started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "recipes"
"""The folder of the recipes: in the installed package, or beside it in a checkout."""
CONFIGS = RECIPES / "configs"
"""The folder of their settings files."""
COMMAND = "HF_DISTINCT_COMMAND"
"""The environment variable in which ``hf-distinct`` leaves the name of its command to the recipe that it starts."""


def program() -> str:
    """How this recipe was started, for its usage line and its messages: ``hf-distinct train``, or ``train.py``."""
    return os.environ.get(COMMAND) or Path(sys.argv[0]).name


def settings_file(name: str | os.PathLike[str]) -> Path:
    """The YAML file that a user names: a path, or one of the recipes' own files.

    The recipes' own files are found from any folder, with or without a checkout: ``flickr8k/scorer``,
    ``flickr8k/scorer.yaml`` and ``recipes/configs/flickr8k/scorer.yaml`` are the same.

    Returns:
        The file; the name as a path if there is no such file.
    """
    path = Path(name)
    own = CONFIGS / path.as_posix().removeprefix("recipes/").removeprefix("configs/")
    return next((file for file in (path, own.with_suffix(".yaml")) if file.is_file()), path)


def settings_names() -> list[str]:
    """The names by which `settings_file` finds the recipes' own files."""
    return [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in sorted(CONFIGS.rglob("*.yaml"))]
