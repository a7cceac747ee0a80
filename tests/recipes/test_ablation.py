"""The ablation's table, from runs that lie there already; training itself is tested in end_to_end."""

import json
import subprocess
import sys
from pathlib import Path

ABLATION = Path(__file__).parents[2] / "recipes" / "ablation.py"


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ABLATION), *arguments], capture_output=True, text=True)


def test_rows_are_averaged_over_seeds_and_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text("full method: {}\nwithout CLIP: {wtf_weight: 0}\n")
    for row, values in {"full_method": [0.5, 0.7], "without_CLIP": [0.1, 0.1]}.items():
        for seed, value in enumerate(values):
            folder = tmp_path / "out" / row / f"seed{seed}"
            folder.mkdir(parents=True)
            metrics = {"judge/t2i_R@1": value, "CIDEr-D": 2 * value}
            report = {"before": {"judge/t2i_R@1": 0.25}, "after": metrics, "people": {"judge/t2i_R@1": 0.2}}
            (folder / "metrics.json").write_text(json.dumps(report))
    done = run(str(rows), "--output_dir", str(tmp_path / "out"), "--seeds", "0", "1")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert "| full method |" in table
    full = next(line for line in table.splitlines() if line.startswith("| full method |"))
    assert "0.600 ± 0.141" in full  # mean of .5 and .7; sample deviation sqrt(2 * .1^2)
    assert "1.200 ± 0.283" in full
    assert "| teacher forcing | 0.250 |" in table
    assert "| people | 0.200 |" in table


def test_an_unknown_row_is_named(tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text("full method: {}\n")
    failed = run(str(rows), "--output_dir", str(tmp_path), "--only", "half a method")
    assert failed.returncode != 0
    assert "half a method" in failed.stderr
    assert "Traceback" not in failed.stderr
