"""Settings of the recipes: an optional YAML file, then ``--name value`` overrides; what nobody knows is an error."""

from __future__ import annotations

import dataclasses
import difflib
import json
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from transformers import HfArgumentParser
from transformers.utils import logging

logger = logging.get_logger(__name__)

PACKAGE = Path(__file__).resolve().parent


@contextmanager
def clear_errors() -> Iterator[None]:
    """Around a recipe: bad input ends it with one line on the screen instead of a traceback.

    What a person can mend (data, names, paths, settings) is raised as ``ValueError`` everywhere in this package and in
    its recipes. A file that cannot be read, or an address that cannot be reached, is an ``OSError``, whoever raises
    it; a missing folder is a name that huggingface_hub finds invalid. Other errors pass with their traceback,
    a ``ValueError`` of another library or of your own reward too.
    ``TRANSFORMERS_VERBOSITY=debug`` shows every traceback.

    Raises:
        SystemExit: with the message, instead of such an error; with status 130 after Ctrl-C.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if not isinstance(error, (OSError, HFValidationError)) and not _is_ours(error):
            raise
        logger.debug("where it happened", exc_info=True)
        raise SystemExit(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}") from error
    except KeyboardInterrupt:  # what there was to say and to save has been said and saved
        raise SystemExit(128 + signal.SIGINT) from None


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised by a line of this package, or of the recipe that runs and those beside it."""
    _, recipe, *inner = (Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__))
    raised_in = [recipe, *inner][-1]
    return raised_in.is_relative_to(PACKAGE) or raised_in.parent == recipe.parent


def parse_settings(
    *kinds: type,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    default_file: str | Path | None = None,
) -> tuple[Any, ...]:
    """Read the settings of a recipe: ``recipe.py [settings.yaml] [--name value ...]``.

    Args:
        kinds: dataclasses; each setting belongs to one of them.
        argv: the command line without the program; ``sys.argv[1:]`` by default.
        description: what ``--help`` says first.
        default_file: the YAML file that is read where the command line names none.

    Returns:
        One instance of each class.

    Raises:
        SystemExit: for a setting that does not exist (the nearest name is shown), a value of the wrong type, or a YAML
            file that cannot be read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # All settings in the usage line would bury the message of an error.
    usage = "%(prog)s [settings.yaml] [--name value ...]"
    parser = HfArgumentParser(kinds, usage=usage, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    names = [field.name for kind in kinds for field in dataclasses.fields(kind) if field.init]
    from_file: list[str] = []
    path = argv.pop(0) if argv and not argv[0].startswith("-") else default_file
    if path is not None:
        from_file = _flags(_read_yaml(str(path), parser), str(path), names, parser)
    for flag in argv:
        if flag.startswith("--"):
            name = flag[2:].split("=", 1)[0].replace("-", "_")
            known = name in names or name == "help" or (name.startswith("no_") and name[3:] in names)
            if not known:
                parser.error(_unknown(flag.split("=", 1)[0], name, names))
    try:
        return parser.parse_args_into_dataclasses(from_file + argv)
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def changed_settings(settings: Any) -> dict[str, Any]:
    """What was set to something else than its default.

    Args:
        settings: an instance of a dataclass; what has no default counts as set, one kind of nothing for another not.

    Returns:
        Values by name, in the order of the dataclass.
    """
    changed = {}
    for field in dataclasses.fields(settings):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(settings, field.name)
        nothing = value in (None, "") and default in (None, "")
        if field.init and value != default and not nothing:
            changed[field.name] = value
    return changed


def _read_yaml(path: str, parser: HfArgumentParser) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"cannot read the settings file {path}: {error}")
    if not isinstance(settings, dict):
        parser.error(f"{path} holds a {type(settings).__name__}; it should hold settings, as `name: value`")
    return settings


def _flags(settings: dict[str, Any], path: str, names: list[str], parser: HfArgumentParser) -> list[str]:
    flags: list[str] = []
    for name, value in settings.items():
        if name not in names:
            parser.error(f"{path}: {_unknown(str(name), str(name), names)}")
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return flags


def _unknown(shown: str, name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    return f"unknown setting {shown}; did you mean --{nearest[0]}?" if nearest else f"unknown setting {shown}"
