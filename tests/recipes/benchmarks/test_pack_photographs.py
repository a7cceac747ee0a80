"""Packed pictures are read again by every recipe, with their captions, and smaller."""

from __future__ import annotations

import forked
import pytest

from hf_distinct.data import load_captions


@pytest.fixture
def folder(tmp_path):
    forked.run("make_example.py", tmp_path / "example", 20)
    (tmp_path / "example" / "images" / "00003.png").write_bytes(b"no picture")
    return tmp_path / "example"


def test_what_is_packed_is_what_there_was(folder, tmp_path):
    packed = tmp_path / "packed"
    done = forked.run(
        "benchmarks/pack_photographs.py", "--dataset", folder, "--output_dir", packed, "--pixels", 24, "--quality", 90
    )
    assert "photograph that cannot be read" in done.stderr and "00003.png" in done.stderr
    sizes, said = 0, set()
    for name, split in load_captions(str(packed)).items():
        assert f"{packed / name}.tar" in done.stdout
        sizes += len(split)
        said |= {tuple(row["captions"]) for row in split}
        assert {row["image"].size for row in split} == {(24, 24)}
    expected = {tuple(captions) for split in load_captions(str(folder)).values() for captions in split["captions"]}
    assert sizes == 19 and said < expected and len(said) == len(expected) - 1


def test_what_cannot_be_packed_is_told_in_one_line(folder, tmp_path):
    done = forked.run("benchmarks/pack_photographs.py", fails=True)
    assert "emoji_scenes are drawn on every machine: name photographs with --dataset." in done.stderr
    done = forked.run("benchmarks/pack_photographs.py", "--dataset", folder, "--quality", 0, fails=True)
    assert "--quality must be from 1 to 95" in done.stderr
