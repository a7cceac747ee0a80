"""The quickstart, cut short: twenty steps already show what the method is for."""

import json
from pathlib import Path

import forked


def test_a_short_quickstart_lifts_retrieval_under_a_judge_that_training_never_saw(tmp_path: Path) -> None:
    cut_short = ["--max_steps", 20, "--train_size", 320, "--test_size", 100]
    done = forked.run("train.py", "--output_dir", tmp_path, *cut_short)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"before", "after", "people", "ceiling"}
    before, after = metrics["before"], metrics["after"]
    assert after["judge/t2i_R@1"] > before["judge/t2i_R@1"] + 0.03
    assert after["twins/judge/t2i_R@1"] > before["twins/judge/t2i_R@1"] + 0.15
    assert after["well_formed"] > 0.95
    assert metrics["ceiling"]["true"] == metrics["ceiling"]["well_formed"] == 1.0
    assert metrics["ceiling"]["details"] == 6.0
    assert "judge/t2i_R@1" in done.stdout  # the table on the screen
    for name in ("contrast.html", "contrast.png", "README.md", "model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / name).is_file(), name
