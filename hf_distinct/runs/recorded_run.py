"""Runs of recipes that are repeated only if something that decides their results has changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hf_distinct import __version__
from hf_distinct.files.model_names import SHIPPED
from hf_distinct.runs.recipes import COMMAND

logger = logging.getLogger(__name__)

RESULTS = ("metrics.json", "captions.json", "captions/*.json")
"""The result files of a run."""


@dataclass
class RecordedRun:
    """A recipe with its settings. It is done if its folder has a done.json of the same recipe, settings and files.

    Attributes:
        name: the name of the run in messages.
        recipe: the script.
        settings: its settings, without ``output_dir``.
        folder: its ``output_dir``.
        base: the settings file that the settings override; None if there is none.
        defaults: the settings files that the recipe reads by itself if ``base`` is None.
    """

    name: str
    recipe: Path
    settings: dict[str, Any]
    folder: Path
    base: str | None = None
    defaults: Sequence[Path] = ()

    def __call__(self, threads: int) -> None:
        """Run the recipe unless it is done; raise a ValueError that names its log if it fails."""
        if self.is_done(tell=True):
            return
        self._done.unlink(missing_ok=True)  # from here on the results are incomplete
        for old in self._results():
            old.unlink()
        command: list[str] = [sys.executable, str(self.recipe), *([self.base] if self.base else [])]
        for key, value in ({**self.settings, "output_dir": self.folder}).items():
            command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        log = self.folder / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        logger.info("%s", self.name)
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **os.environ, COMMAND: ""}
        made_by = self.made_by()
        with open(log, "w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            raise ValueError(f"{self.name}: {self.recipe.name} ended with status {code}; see {log} for the reason.")
        self.finish(made_by)

    def finish(self, made_by: dict[str, Any]) -> None:
        """Mark the run as done, by a file that is written last and atomically."""
        files = {file.relative_to(self.folder).as_posix(): digest(file) for file in self._results()}
        unfinished = self._done.with_suffix(".tmp")
        with open(unfinished, "w") as file:
            json.dump({"made_by": made_by, "files": files}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._done)

    def is_done(self, tell: bool = False) -> bool:
        """Whether the results are complete and up to date; ``tell`` logs why a run that has results is not done."""
        if not self._done.is_file():
            if tell and (self.folder / "metrics.json").is_file():
                logger.info("%s: run again, because the results in %s were never completed", self.name, self.folder)
            return False
        why = self._changed()
        if why and tell:
            logger.info("%s: run again, because %s", self.name, why)
        return not why

    def _changed(self) -> str:
        """The first difference that makes the results outdated; an empty string if there is none."""
        try:
            found = json.loads(self._done.read_text())
            then, files = dict(found["made_by"]), dict(found["files"])
        except (ValueError, LookupError, TypeError):
            return f"{self._done} is incomplete"
        now = json.loads(json.dumps(self.made_by()))
        for name in sorted({*now, *then}):
            if then.get(name) != now.get(name):
                return f"{name} was {then.get(name)} and is now {now.get(name)}"
        for name, hashed in files.items():
            if not (self.folder / name).is_file() or digest(self.folder / name) != hashed:
                return f"{self.folder / name} is missing or has changed"
        return ""

    def made_by(self) -> dict[str, Any]:
        """Everything that decides the results: settings, the files that they name, package and defaults."""
        settings = {f"--{name}": value for name, value in self.settings.items()}
        bases = [Path(self.base)] if self.base else self.defaults
        named = [Path(value) for value in self.settings.values() if isinstance(value, (str, Path)) and value]
        return {
            "the recipe": self.recipe.name,
            **{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
            **{f"the content of {path.name}": digest(path) for path in bases if path.is_file()},
            **{f"the state of {path}": state(path) for path in named if os.path.exists(path)},
            "the version of hf_distinct": __version__,
            "the models that hf_distinct ships": shipped_digest(),
        }

    @property
    def _done(self) -> Path:
        return self.folder / "done.json"

    def _results(self) -> list[Path]:
        return sorted(file for pattern in RESULTS for file in self.folder.glob(pattern))


def digest(path: Path) -> str:
    """Hash the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def state(path: Path) -> dict[str, list[int]]:
    """Size and time of a file, or of the files directly in a folder, except logs."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return {
        file.name: [file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.name not in ("log.txt", "done.json")
    }


@cache
def shipped_digest() -> str:
    """Hash the files of the shipped models."""
    return "".join(digest(file)[:4] for file in sorted(SHIPPED.glob("*/*")) if file.is_file())
