"""Perplexity under a small GPT-2, against the model's own loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distinct.evaluation.bootstrap import value_of
from hf_distinct.evaluation.fluency import LanguageJudges, LanguageModel, perplexity, perplexity_distance
from hf_distinct.evaluation.grammar import train_grammar_judge

CAPTIONS = ["a red dog", "", "a cat on a mat", "a"]


def test_it_is_the_models_own_loss_whatever_the_batch(tmp_path):
    folder = tiny.language_model(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    sums, counts = LanguageModel(str(folder), "cpu").surprise(CAPTIONS)
    for caption, found, count in zip(CAPTIONS, sums, counts, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(caption, add_special_tokens=False)["input_ids"]]])
        assert count == ids.shape[1] - 1 == len(caption.split())
        if count:
            with torch.no_grad():
                assert found / count == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    again = LanguageModel(str(folder), "cpu").surprise(CAPTIONS, batch_size=1)
    assert again[0] == pytest.approx(sums, rel=1e-5)


def test_perplexity_by_hand():
    # Four tokens, each of probability 1/2, and two of 1/8: exp((4 ln 2 + 2 ln 8) / 6).
    found = perplexity(np.array([4 * math.log(2), 2 * math.log(8)]), np.array([4.0, 2.0]))
    assert value_of(found, 2) == pytest.approx(2 ** (10 / 6))
    assert found(np.array([[1.0, 0.0], [0.0, 5.0]])) == pytest.approx([2.0, 8.0])


def test_no_such_model(tmp_path):
    with pytest.raises(ValueError, match="language model .* cannot be loaded"):
        LanguageModel(str(tmp_path / "nothing"))


def test_the_distance_from_people_has_two_directions():
    """By hand: perplexities of 2 and 8 are as far from 4, and 4 is not far at all."""
    people, weights = (lambda weights: weights @ np.array([4.0])), np.ones((1, 1))
    for own, expected in ((2.0, math.log(2)), (8.0, math.log(2)), (4.0, 0.0)):
        found = perplexity_distance(lambda weights, own=own: weights @ np.array([own]), people)
        assert found(weights)[0] == pytest.approx(expected)


def test_judges_of_language(tmp_path):
    """Each measures where it is named, and the judge of grammar says how good it is."""
    judge = train_grammar_judge(["a dog runs"] * 3, epochs=1, width=4)
    judge.accuracy = {"people": 0.875, "cut": 0.5}
    judge.save(tmp_path / "grammar")
    captions = ["a dog runs", "a dog a dog"]
    nobody = LanguageJudges()
    assert nobody.statistics(captions) == {} and not list(nobody.told())
    both = LanguageJudges(str(tmp_path / "grammar"), str(tiny.language_model(tmp_path / "model")))
    found = {name: value_of(each, 2) for name, each in both.statistics(captions).items()}
    assert found["grammar"] == judge.accepts(captions).mean()
    assert found["perplexity"] == pytest.approx(value_of(perplexity(*both.model.surprise(captions)), 2))
    (line,) = both.told()
    assert line.endswith("held-out captions: people 0.88, cut 0.50.")
