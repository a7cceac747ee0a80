"""The worked example of one's own pictures is what the loader takes."""

from pathlib import Path

import forked

from hf_distinct.data import load_captions


def test_the_example_loads_as_a_folder_of_captioned_pictures(tmp_path: Path) -> None:
    forked.run("make_example.py", tmp_path / "example", 12)
    train = load_captions(str(tmp_path / "example"))["train"]
    assert len(train) == 12
    assert all(len(captions) == 5 for captions in train["captions"])
    assert train[0]["image"].size == (64, 64)
