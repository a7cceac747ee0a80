"""The recipes' own settings files are found from any folder, and a recipe knows by which command it was started."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_distinct.runs.recipes import COMMAND, CONFIGS, program, settings_file, settings_names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "flickr8k/scorer", "flickr8k/scorer.yaml", "configs/flickr8k/scorer.yaml",
        "recipes/configs/flickr8k/scorer.yaml",
    ],
)  # fmt: skip
def test_a_settings_file_of_the_recipes(name):
    assert settings_file(name) == CONFIGS / "flickr8k" / "scorer.yaml"


def test_every_name_is_found():
    assert len(settings_names()) == len(list(CONFIGS.rglob("*.yaml"))) > 0
    assert all(settings_file(name).is_file() for name in settings_names())


def test_a_file_of_ones_own_comes_first():
    Path("scorer").mkdir()  # a folder is no settings file
    assert settings_file("scorer") == CONFIGS / "scorer.yaml"
    Path("scorer.yaml").touch()
    assert settings_file("scorer.yaml") == Path("scorer.yaml")


def test_a_file_that_nobody_has():
    assert settings_file("nowhere/own.yaml") == Path("nowhere/own.yaml")


def test_the_program_is_the_command_or_the_script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/some/where/train.py"])
    monkeypatch.delenv(COMMAND, raising=False)
    assert program() == "train.py"
    monkeypatch.setenv(COMMAND, "hf-distinct train")
    assert program() == "hf-distinct train"
