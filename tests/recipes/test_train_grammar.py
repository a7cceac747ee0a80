"""recipes/train_grammar.py as a person runs it."""

from __future__ import annotations

import json

import forked

from hf_distinct.evaluation.corruptions import CORRUPTIONS
from hf_distinct.evaluation.grammar import GrammarJudge


def test_a_judge_of_a_persons_own_captions(tmp_path):
    forked.run("make_example.py", tmp_path / "pictures", 60)
    output = tmp_path / "grammar"
    done = forked.run("train_grammar.py", "--dataset", tmp_path / "pictures", "--epochs", 2, "--output_dir", output)
    accuracy = json.loads((output / "config.json").read_text())["accuracy"]
    assert set(accuracy) == {"people", *CORRUPTIONS}
    assert "epoch 2 of 2: loss" in done.stderr and f"judge of grammar: {output}" in done.stdout
    assert f"{accuracy['cut']:.3f}" in done.stdout
    assert GrammarJudge.load(output).score(["a dog"]).shape == (1,)
