"""A run is done while all that made it is the same, and is made again otherwise."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from hf_distinct.runs.recorded_run import RecordedRun

SCRIPT = """
import json, pathlib, sys
settings = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(settings["--output_dir"])
(folder / "metrics.json").write_text(json.dumps(settings))
sys.exit(settings["--seed"] == "13")
"""


@pytest.fixture
def make(tmp_path):
    (tmp_path / "recipe.py").write_text(SCRIPT)
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "weights").write_text("1")
    (tmp_path / "defaults.yaml").write_text("a: 1")
    recipe, defaults = tmp_path / "recipe.py", [tmp_path / "defaults.yaml"]

    def run(**settings):
        given = {"split": "test", "seed": 0, "scorer": str(tmp_path / "model"), **settings}
        return RecordedRun("row, seed 0", recipe, given, tmp_path / "out", defaults=defaults)

    return run


def test_a_run_is_not_repeated_while_all_is_the_same(make, tmp_path):
    make()(threads=1)
    before = (tmp_path / "out" / "metrics.json").stat().st_mtime_ns
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["--split"] == "test"
    make()(threads=1)
    assert (tmp_path / "out" / "metrics.json").stat().st_mtime_ns == before
    assert make().is_done()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda folder: {"split": "validation"}, "--split was test and is now validation"),
        (lambda folder: {"seed": 1}, "--seed was 0 and is now 1"),
        (lambda folder: {"wtf_weight": 0.5}, "--wtf_weight was None and is now 0.5"),
        (lambda folder: (folder / "defaults.yaml").write_text("a: 2") and {}, "the content of defaults.yaml was"),
        (lambda folder: os.utime(folder / "model" / "weights", (1, 1)) or {}, "the state of .*model was"),
        (lambda folder: (folder / "out" / "metrics.json").write_text("{") and {}, "metrics.json is missing or"),
        (lambda folder: (folder / "out" / "done.json").write_text("{") and {}, "done.json is incomplete"),
        (lambda folder: (folder / "out" / "done.json").write_text("[]") and {}, "done.json is incomplete"),
    ],
)
def test_a_run_is_repeated_and_says_why_where_anything_has_changed(make, tmp_path, caplog, change, told):
    caplog.set_level(logging.INFO)
    make()(threads=1)
    settings = change(tmp_path)
    assert not make(**settings).is_done()
    make(**settings)(threads=1)
    assert make(**settings).is_done()
    (line,) = [record.getMessage() for record in caplog.records if "run again" in record.getMessage()]
    assert line.startswith("row, seed 0: run again, because ")


    assert re.search(told, line)


def test_what_was_never_finished_is_not_done(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.json").write_text('{"before": {"judge/t2i_R@1": 1.0,')
    make()(threads=1)
    assert "were never completed" in caplog.text
    assert make().is_done()


def test_a_run_that_fails_is_not_done_and_leaves_no_older_result(make, tmp_path):
    make()(threads=1)
    with pytest.raises(ValueError, match=r"row, seed 0: recipe.py ended with status 1; see .*log.txt for the reason"):
        make(seed=13)(threads=1)
    assert not make(seed=13).is_done()
    assert not make().is_done()
    assert not (Path(tmp_path) / "out" / "done.json").exists()
