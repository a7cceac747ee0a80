"""The quickstart, cut short: it runs as the README says, and a few dozen steps already show what the method is for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_quickstart_lifts_retrieval_under_a_judge_that_training_never_saw(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "recipes" / "train.py"), "--output_dir", str(tmp_path)]
    command += ["--max_steps", "40", "--train_size", "640", "--test_size", "200"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"before", "after", "people", "ceiling"}
    before, after = metrics["before"], metrics["after"]
    assert after["judge/t2i_R@1"] > before["judge/t2i_R@1"] + 0.05
    assert after["well_formed"] > 0.95
    assert metrics["ceiling"]["true"] == metrics["ceiling"]["well_formed"] == 1.0
    assert metrics["ceiling"]["details"] == 6.0
    assert "judge/t2i_R@1" in done.stdout  # the table on the screen
    for name in ("contrast.html", "contrast.png", "README.md", "model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / name).is_file(), name
