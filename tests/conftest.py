"""Fixtures of the tests that train or start processes: see tiny.py for what they hold."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# What datasets and hf_distinct keep: each process of the tests has a folder of its own, which is removed at its end.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_distinct-tests-")
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

import tiny  # noqa: E402  # after the setting, which datasets reads when it is imported


def pytest_configure(config: pytest.Config) -> None:
    """Tests of a file share what it trains and launches: with `-n` they stay together in one process."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadfile"


@pytest.fixture(autouse=True)
def precision_of_no_other_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 4.57 leaves the precision of one trainer in the environment, where the next one finds it."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ``captioner`` and ``scorer``."""
    return tiny.build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session", params=[name for name in tiny.NEW if name != "vision-encoder-decoder"])
def other_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``tiny_models``, with a captioner of each other family."""
    return tiny.build_models(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def make_trainer(tiny_models: Path, tmp_path: Path) -> Callable[..., tiny.RecordingTrainer]:
    """Makes a trainer of the tiny models from settings, in a folder of its own unless ``output`` is given."""

    def make(output: Path = tmp_path / "run", **settings: Any) -> tiny.RecordingTrainer:
        return tiny.make_trainer(tiny_models, output, **settings)

    return make


@pytest.fixture
def free_port() -> int:
    return tiny.free_port()


@pytest.fixture
def run_processes(free_port: int) -> Callable[..., str]:
    """tiny.run_processes at a free port; a script that is run need not load tiny.py for it."""
    return functools.partial(tiny.run_processes, free_port)
