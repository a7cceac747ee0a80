"""The worked example of one's own pictures is what the loader takes."""

import subprocess
import sys
from pathlib import Path

from hf_distinct.data import load_captions

EXAMPLE = Path(__file__).parents[2] / "recipes" / "make_example.py"


def test_the_example_loads_as_a_folder_of_captioned_pictures(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "example"), "12"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train = load_captions(str(tmp_path / "example"))["train"]
    assert len(train) == 12
    assert all(len(captions) == 5 for captions in train["captions"])
    assert train[0]["image"].size == (64, 64)
