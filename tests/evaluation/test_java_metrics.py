"""METEOR and SPICE where they cannot run; where they can, recipes/README.md has the command that compares METEOR."""

from __future__ import annotations

import pytest

from hf_distinct.evaluation.java_metrics import check_java, meteor_scores, spice_scores


def test_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="METEOR needs Java, and there is no `java` on the PATH"):
        meteor_scores(["a"], [["a"]])
    with pytest.raises(ValueError, match="SPICE needs Java"):
        check_java("SPICE")


def test_without_pycocoevalcap(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap", None)
    with pytest.raises(ValueError, match="METEOR needs `pip install pycocoevalcap`"):
        check_java("METEOR")


def test_lists_of_unequal_length():
    with pytest.raises(ValueError, match="1 captions and 2 lists of references"):
        spice_scores(["a"], [["a"], ["b"]])
