"""The metrics load with `evaluate.load(path)` in a fresh process without network and give the functions' numbers.

The package itself does not import `evaluate`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

import hf_distinct.evaluation
from hf_distinct.evaluation import bleu, caption_metrics, distinct_n, retrieval_metrics, self_bleu
from hf_distinct.evaluation.grammar import train_grammar_judge
from hf_distinct.evaluation.modules import path

CAPTIONS = ["a red dog", "a cat", "a cat"]
REFERENCES = [["a red dog runs", "the dog"], ["a cat"], ["a blue bird", "bird"]]
TEXTS = [[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]]
IMAGES = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]

SCRIPT = """
import json
import socket
import sys

def refuse(*_):
    raise OSError("the network was asked for")

socket.socket.connect = refuse
import hf_distinct.evaluation.modules, hf_distinct.reporting
assert "evaluate" not in sys.modules
import evaluate
given = json.load(sys.stdin)
results = {name: evaluate.load(path).compute(**arguments) for name, path, arguments in given}
json.dump(results, sys.stdout)
"""


def in_fresh_process(script: str, text: str, cache: Path) -> str:
    package = Path(hf_distinct.evaluation.__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"PYTHONPATH": str(package), "HF_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", script], input=text, env=environment, cwd=cache, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_load_and_compute(tmp_path):
    judge = train_grammar_judge(CAPTIONS, epochs=1, width=4)
    judge.accuracy = {"people": 0.9}
    judge.save(tmp_path / "judge")
    given: list = [
        ("caption_quality", {"predictions": CAPTIONS, "references": REFERENCES}),
        ("caption_diversity", {"predictions": CAPTIONS, "training_captions": ["a cat"]}),
        ("clip_retrieval", {"predictions": TEXTS, "references": IMAGES, "neighbours": [[1], [2], [0]]}),
        ("clip_score", {"predictions": TEXTS, "references": IMAGES, "reference_captions": [[text] for text in TEXTS]}),
        ("caption_faults", {"predictions": ["a dog on a", *CAPTIONS]}),
        ("caption_invention", {"predictions": CAPTIONS, "references": REFERENCES}),
        ("caption_grammar", {"predictions": ["a dog on a", *CAPTIONS], "judge": str(tmp_path / "judge")}),
        ("caption_perplexity", {"predictions": CAPTIONS, "model": str(tiny.language_model(tmp_path / "model"))}),
    ]
    text = json.dumps([(name, path(name), arguments) for name, arguments in given])
    results = json.loads(in_fresh_process(SCRIPT, text, tmp_path))

    expected = caption_metrics(CAPTIONS, REFERENCES)
    blue = {f"BLEU-{n}": score for n, score in enumerate(bleu(CAPTIONS, REFERENCES), start=1)}
    assert results["caption_quality"] == pytest.approx(
        {"CIDEr-D": expected["CIDEr-D"], **blue, "ROUGE-L": expected["ROUGE-L"]}
    )
    assert results["caption_diversity"] == pytest.approx(
        {name: expected[name] for name in ("vocabulary", "mean_length", "unique")}
        | {"distinct_1": distinct_n(CAPTIONS, 1), "distinct_2": distinct_n(CAPTIONS, 2)}
        | {"self_BLEU": self_bleu(CAPTIONS), "novelty": 1 / 3}
    )
    found = retrieval_metrics(torch.tensor(TEXTS), torch.tensor(IMAGES))
    assert {name: results["clip_retrieval"][name] for name in found} == pytest.approx(found)
    # Caption 0 is nearer to its image than to image 1, caption 1 is nearest to image 2, caption 2 to image 2.
    assert results["clip_retrieval"]["neighbours_t2i_R@1"] == pytest.approx(2 / 3)
    assert results["clip_score"]["CLIPScore"] == pytest.approx(2.5 * (1 + 0.8 + 0.96) / 3)
    assert results["clip_score"]["RefCLIPScore"] == pytest.approx(
        sum(2 * cosine * 2.5 / (2.5 * cosine + 1) for cosine in (1, 0.8, 0.96)) / 3
    )
    assert results["caption_faults"] == {"bad_endings": 0.25, "repeats": 0.0}
    assert results["caption_invention"] == {"invention": pytest.approx(1 / 4)}  # of red, dog, cat, cat the last
    accepted = judge.accepts(["a dog on a", *CAPTIONS])
    assert results["caption_grammar"] == {"grammar": accepted.mean(), "accuracy": {"people": 0.9}}
    assert results["caption_perplexity"]["perplexity"] > 1


def test_unknown_name():
    with pytest.raises(
        ValueError,
        match="there are caption_diversity, caption_faults, caption_grammar, caption_invention, caption_java",
    ):
        path("cider")
