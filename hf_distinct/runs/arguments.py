"""Settings of the recipes: an optional YAML file, then ``--name value`` overrides; an unknown name is an error."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub.errors import HFValidationError
from transformers import HfArgumentParser
from transformers.utils import logging

from hf_distinct.runs.logs import lasting_output
from hf_distinct.runs.recipes import CONFIGS, PACKAGE, program, settings_file
from hf_distinct.settings import changed_settings
from hf_distinct.text.escaping import plain, plain_lines
from hf_distinct.text.yaml_files import parse_yaml
from hf_distinct.training.interruption import Signalled, ended_from_inside

logger = logging.get_logger(__name__)

Told = Mapping[str, Sequence[str]]
"""What the command line sets: the values after each ``--name``, by name."""

GIVES_WAY: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("reward", None, ("reward_weights",)),
    ("rollouts", "beam", ("num_rollouts", "temperature", "baseline")),
    ("num_rollouts", "1", ("baseline",)),
    ("mined", None, ("pool_neighbours", "neighbour_first_rank")),
    ("pool_neighbours", "0", ("neighbour_first_rank",)),
    ("num_train_epochs", None, ("max_steps",)),
    ("max_steps", None, ("num_train_epochs",)),
    ("warmup_ratio", None, ("warmup_steps",)),
    ("save_steps", None, ("save_strategy",)),
    ("eval_strategy", "no", ("eval_steps", "eval_on_start")),
    ("discriminator_weight", "0", ("discriminator_lr", "discriminator_pretrain_steps")),
    ("wtf_weight", "0", ("wtf_policy", "references_per_image")),
)
"""A setting, its value (None: any), and the settings of a default file that are dropped if the user sets it so.

The settings of a default file fit each other. If you change one of them, the others could contradict or override it:
`--num_train_epochs 2` would have no effect beside `max_steps: 300`. What you set yourself is never dropped, neither on
the command line nor in a file that the command line names.
"""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show what a user can mend as one line instead of a traceback, around a whole recipe.

    This package and its recipes raise such errors (data, names, paths, settings) as ``ValueError``. An ``OSError``
    counts too, whoever raises it: a file cannot be read, or an address cannot be reached; so does a name that
    huggingface_hub refuses, because it is that of a missing folder. A killed worker of a DataLoader and a lost process
    also end the recipe with one line. All other errors keep their traceback, including a ``ValueError`` of another
    library or of your own reward. ``TRANSFORMERS_VERBOSITY=debug`` shows every traceback.

    Raises:
        SystemExit: instead of such an error, with its message. After a signal, with the exit status that a shell
            gives it: 130 after Ctrl-C, 143 after SIGTERM; one line names the signal.
    """
    try:
        with lasting_output(), ended_from_inside():
            yield
    except (ValueError, OSError, RuntimeError) as error:
        from hf_distinct.data.workers import said_by_worker  # here, for they take a second
        from hf_distinct.distributed.gathering import said_of_lost_process

        said = said_by_worker(error) or said_of_lost_process(error)
        ours = isinstance(error, (OSError, HFValidationError)) or (isinstance(error, ValueError) and _is_ours(error))
        if said is None and not ours:
            raise
        logger.debug("where it happened", exc_info=True)
        raise SystemExit(f"{program()}: error: {plain(said or str(error))}") from error
    except Signalled as error:
        _say_stopped(error.number)
        raise
    except KeyboardInterrupt:
        _say_stopped(signal.SIGINT)
        raise SystemExit(128 + signal.SIGINT) from None


def _say_stopped(number: int) -> None:
    if os.environ.get("RANK", "0") == "0":  # one process speaks for all
        print(f"{program()}: stopped by {signal.Signals(number).name}", file=sys.stderr)  # noqa: T201


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this package, of the recipe that runs, or of a file beside that recipe raised it."""
    _, recipe, *inner = (Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__))
    raised_in = [recipe, *inner][-1]
    return raised_in.is_relative_to(PACKAGE) or raised_in.parent == recipe.parent


class _Parser(HfArgumentParser):
    """A settings file may be a stranger's: what it names is shown as text."""

    def error(self, message: str) -> NoReturn:
        super().error(plain_lines(message))


class _Help(argparse.HelpFormatter):
    """Wraps the paragraphs of the description but no example, and shows each default that the help does not name."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.strip().split("\n\n")
        return "\n\n".join(part if part.startswith(" ") else textwrap.fill(part, width) for part in parts)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").replace("%", "%%")  # transformers has a lone one in a help text
        known = action.default in (None, "", [], argparse.SUPPRESS) or "Default" in text
        return text if known else f"{text} (default: %(default)s)"


def parse_settings(
    *kinds: type,
    argv: Sequence[str] | None = None,
    description: str | None = None,
    default_file: str | Path | Callable[[Told], str | Path] | None = None,
    first: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Read the settings of a recipe: ``recipe.py [settings.yaml] [--name value ...]``.

    The command line overrides the file, which `settings_file` finds. Settings of a default file are dropped where
    `GIVES_WAY` says so.

    Args:
        kinds: dataclasses; each setting belongs to one of them.
        argv: the command line without the program; ``sys.argv[1:]`` by default.
        description: the text that ``--help`` shows first.
        default_file: the YAML file that is read if the command line names none, or a function that chooses it by the
            settings on the command line.
        first: settings whose values may also come first, without their names: with ``("folder",)`` the command line
            ``recipe.py [settings.yaml] FOLDER`` is possible.

    Returns:
        One instance of each class.

    Raises:
        SystemExit: for a setting that does not exist (the nearest name is shown), a value of the wrong type, or a YAML
            file that cannot be read.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    fields = {field.name: field for kind in kinds for field in dataclasses.fields(kind) if field.init}
    names = list(fields)
    needed = [name for name in first if fields[name].default is fields[name].default_factory]  # it has neither
    # All settings in the usage line would bury the message of an error.
    shown = [name.upper() if name in needed else f"[{name.upper()}]" for name in first]
    usage = " ".join(["%(prog)s [settings.yaml]", *shown, "[--name value ...]"])
    about = {"prog": program(), "usage": usage, "description": description, "formatter_class": _Help}
    parser = _Parser(kinds, allow_abbrev=False, **about)  # type: ignore[arg-type]
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    rest = argv[len(words) :]
    has_file = len(words) > len(first) or (needed and "".join(words[:1]).endswith((".yaml", ".yml")))
    named_file = words.pop(0) if has_file else None
    if len(words) > len(first):
        parser.error(f"{words[-1]!r} does not fit the usage above: write `--name value`")
    argv = [each for name, word in zip(first, words, strict=False) for each in (f"--{name}", word)] + rest
    told = _told(argv, names, parser)
    from_file: list[str] = []
    if named_file is not None:
        from_file = _flags(_read_yaml(named_file, parser), named_file, names, parser)
    elif default_file is not None:
        path = str(default_file(told) if callable(default_file) else default_file)
        from_file = _flags(_without_partners(_read_yaml(path, parser), told), path, names, parser)
    try:
        return parser.parse_args_into_dataclasses(from_file + argv)
    except (ValueError, TypeError) as error:
        parser.error(str(error))


def unused_settings(settings: Any, names: Iterable[str], why: str) -> Iterator[str]:
    """Find the settings that were changed although they have no effect.

    Args:
        settings: an instance of a dataclass.
        names: those of its settings that have no effect.
        why: the reason, which ends the sentence.

    Yields:
        A sentence for each of the names whose value differs from its default.
    """
    changed = changed_settings(settings)
    for name in names:
        if name in changed:
            yield f"--{name} has no effect {why}."


def too_small(settings: Any, **least: float) -> Iterator[str]:
    """Find the settings whose value is below the least possible one.

    Args:
        settings: an object with the settings as attributes; None is no number and passes.
        least: the least value of each setting, by its name.

    Yields:
        A sentence for each setting that is too small, or that is NaN.
    """
    for name, lowest in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= lowest:
            yield f"{name}={value} must be at least {lowest}."


def _told(argv: Sequence[str], names: list[str], parser: HfArgumentParser) -> dict[str, list[str]]:
    """The values after each flag, by the name of its setting; ends with an error at the first unknown name."""
    told: dict[str, list[str]] = {}
    words: list[str] = []
    for word in argv:
        if not word.startswith("--"):
            words.append(word)
            continue
        flag, equals, value = word.partition("=")
        name, words = flag[2:].replace("-", "_"), [value] if equals else []
        if name not in names and name.startswith("no_") and name[3:] in names:
            name, words = name[3:], ["false"]
        elif name not in names and name != "help":
            parser.error(_unknown(flag, name, names))
        told[name] = words
    return told


def _without_partners(defaults: dict[str, Any], told: Told) -> dict[str, Any]:
    """The settings of a default file without those that are dropped for the user's own."""
    given_way = {
        partner
        for name, value, partners in GIVES_WAY
        if name in told and (value is None or _is_value(told[name], value))
        for partner in partners
    }
    return {name: value for name, value in defaults.items() if name not in given_way}


def _is_value(words: Sequence[str], value: str) -> bool:
    try:
        return [float(word) for word in words] == [float(value)]
    except ValueError:
        return list(words) == [value]


def _read_yaml(path: str, parser: HfArgumentParser) -> dict[str, Any]:
    try:
        settings = parse_yaml(settings_file(path).read_text(encoding="utf-8"), path) or {}
    except FileNotFoundError:
        parser.error(f"cannot read the settings file {path}: it does not exist; those of hf_distinct are in {CONFIGS}")
    except (OSError, ValueError) as error:
        parser.error(f"cannot read the settings file {path}: {error}")
    if not isinstance(settings, dict):
        parser.error(f"{path} holds a {type(settings).__name__}; it must hold settings, as `name: value`")
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
