"""A run of embedding and mining that is killed (SIGKILL) at ten random moments ends as if it had never been."""

import json
import os
import subprocess
import sys
from pathlib import Path

import published_forms
import pytest
from datasets import Dataset

from hf_distinct.data.table import caption_features

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_killed_ten_times_and_the_same_to_the_bit(tiny_models, tmp_path):
    pictures = published_forms.jpegs(330)
    pictures[100] = pictures[100][:300]  # a picture that cannot be decoded stays out, whoever finds it
    columns = {
        "image": [{"bytes": picture, "path": None} for picture in pictures],
        "captions": [[f"Picture {row}.", f"It is number {row} of all."] for row in range(len(pictures))],
        "image_id": [str(row) for row in range(len(pictures))],
    }
    Dataset.from_dict(columns, features=caption_features()).save_to_disk(str(tmp_path / "data"))
    script = Path(__file__).parent / "kill_mining.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data"), str(tiny_models / "scorer"), str(tmp_path), "0"],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    names = {Path(name).name.split("-")[0] for name in report["files"]}
    assert names == {
        "image_embeds.npy",
        "caption_embeds.npy",
        "caption_offsets.npy",
        "manifest.json",
        "index",
        "neighbours",
    }
    assert sum("neighbours-" in name for name in report["files"]) == 3
    assert len(report["killed"]) == 10
    assert "embedding" in report["killed"] and any(each.startswith("mining") for each in report["killed"])
    assert report["same"] and all(report["same"])
