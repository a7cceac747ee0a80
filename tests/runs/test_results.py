"""Results take no place of what somebody wrote, are whole or not there, and what may fail does not end a run."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from hf_distinct.files.model_names import shipped
from hf_distinct.runs.results import or_warn, output_problems, own_files, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_recipe_overwrites_what_a_recipe_wrote(tmp_path, caplog):
    for text in ("first", "second"):
        write_text(tmp_path / "out" / "a.txt", text)
    assert names(tmp_path / "out") == ["a.txt"] and (tmp_path / "out" / "a.txt").read_text() == "second"
    assert not caplog.records


@pytest.mark.parametrize("edited", [False, True])
def test_what_somebody_wrote_or_edited_stays(tmp_path, caplog, edited):
    if edited:
        write_text(tmp_path / "notes.md", "ours")
    (tmp_path / "notes.md").write_text("mine")
    for text in ("first", "second"):
        write_text(tmp_path / "notes.md", text)
    assert names(tmp_path) == ["notes.1.md", "notes.md"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["second", "mine"]
    assert "notes.md is not as a recipe wrote it, so it is kept. The new file is notes.1.md." in caplog.text


def test_links_and_folders_are_somebodys_too(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    os.symlink(tmp_path / "elsewhere", tmp_path / "a.txt")
    os.symlink(tmp_path / "nowhere", tmp_path / "a.1.txt")
    (tmp_path / "a.2.txt").mkdir()
    write_text(tmp_path / "a.txt", "ours")
    assert (tmp_path / "a.3.txt").read_text() == "ours" and (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_record_that_is_torn_makes_everything_somebodys(tmp_path):
    write_text(tmp_path / "a.txt", "ours")
    (tmp_path / ".hf_distinct.json").write_text("{")
    write_text(tmp_path / "a.txt", "new")
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["new", "ours"]


def test_several_files_below_the_folder(tmp_path):
    for _ in range(2):
        with own_files(tmp_path, "captions/a.json", "b.json") as paths:
            for path in paths:
                path.write_text("x")
    assert names(tmp_path) == ["b.json", "captions"] and names(tmp_path / "captions") == ["a.json"]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "metrics.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "metrics.json", {"a": object()})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"a": 1} and names(tmp_path) == ["metrics.json"]


def test_nan_is_null(tmp_path):
    write_json(tmp_path / "metrics.json", {"a": float("nan"), "b": [float("inf"), 0.5]})
    found = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": None, "b": [None, 0.5]}


def test_what_a_run_can_do_without_warns_in_one_line(caplog):
    with caplog.at_level(logging.WARNING), or_warn("contrast.html"):
        raise RuntimeError("no\nfont")
    (told,) = caplog.messages
    assert told == "contrast.html could not be made: RuntimeError: no font. The other results are complete."
    with pytest.raises(KeyboardInterrupt), or_warn("contrast.html"):
        raise KeyboardInterrupt


def test_a_model_is_not_trained_over_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    for source in ("mine", "./mine/", str(tmp_path / "mine"), "link"):
        (told,) = output_problems(tmp_path / "mine", {"model": source})
        assert told.startswith(f"--model and --output_dir are both {source}, so the run would overwrite this model")
    assert list(output_problems("new", {"model": "mine", "other": None})) == []
    assert len(list(output_problems(shipped("captioner"), {"model": "captioner"}))) == 1
