"""A second run in the same folder is refused at its start, before it loads or embeds anything."""

from __future__ import annotations

import forked
import pytest

from hf_distinct.files import run_lock

MISSING = "no/such/model"
COMMANDS = {
    "train.py": ["--model_name_or_path", MISSING],
    "warm_up.py": ["--model_name_or_path", MISSING],
    "distill.py": ["--dataset", "no/such/file", "--teacher", MISSING],
    "train_clip.py": ["--model", MISSING],
    "mine.py": ["--scorer", MISSING],
    "evaluate_captions.py": ["--model", MISSING],
    "caption.py": ["--folder", "no/such/folder", "--model", MISSING],
    "ablation.py": [],
}


@pytest.mark.parametrize("recipe", COMMANDS)
def test_a_second_run_is_refused_at_once(tmp_path, recipe):
    run_lock.claim(tmp_path)
    try:
        done = forked.run(recipe, "--output_dir", tmp_path, *COMMANDS[recipe], fails=True)
    finally:
        run_lock.release(tmp_path)
    assert f"error: output_dir {tmp_path}: another run is using this folder" in done.stderr
    assert not list(tmp_path.iterdir())
