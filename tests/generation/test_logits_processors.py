"""Against transformers' own processor, and by hand."""

from __future__ import annotations

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from hf_distinct.generation.logits_processors import MultinomialSampling, NoRepeatNGrams


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_tokens_that_transformers_forbids_are_forbidden_and_no_others(size):
    generator, forbidden = torch.Generator().manual_seed(size), 0
    for length in range(1, 15):
        ids = torch.randint(0, 4, (40, length), generator=generator)  # few words, which soon repeat
        scores = torch.randn(40, 6, generator=generator)
        expected = NoRepeatNGramLogitsProcessor(size)(ids, scores.clone())
        torch.testing.assert_close(NoRepeatNGrams(size)(ids, scores), expected, rtol=0, atol=0)
        forbidden += int(expected.isinf().sum())
    assert forbidden > 20


@pytest.mark.parametrize("offset", [0.0, -7.0])  # log-probabilities, and logits
def test_a_random_number_draws_the_token_in_whose_part_of_the_sum_it_falls(offset, monkeypatch):
    """Parts by hand: [0, 0), [0, 0.25), nothing, [0.25, 0.75), [0.75, 1), nothing; counted from 1 down to above 0."""
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    random = torch.tensor([[1 - 2**-53], [0.8], [0.7], [0.3], [0.2], [0.0]], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: random)
    scores = (probabilities.log() + offset).repeat(6, 1)
    found = MultinomialSampling()(torch.zeros(6, 1), scores)
    assert found.argmax(dim=1).tolist() == [1, 1, 3, 3, 4, 4]
    assert (found == -torch.inf).sum(dim=1).tolist() == [5] * 6


def test_rows_are_drawn_independently_by_their_own_probabilities():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 30, generator=generator) * 2
    torch.manual_seed(0)
    drawn = MultinomialSampling()(torch.zeros(1), scores.repeat_interleave(40_000, dim=0)).argmax(dim=1)
    for row, tokens in zip(scores, drawn.view(2, -1), strict=True):
        found = torch.bincount(tokens, minlength=30) / 40_000
        spread = (row.softmax(0) * (1 - row.softmax(0)) / 40_000).sqrt()
        assert ((found - row.softmax(0)).abs() < 4.5 * spread).all()
    same = (drawn[:40_000] == drawn[40_000:]).float().mean()
    assert abs(float(same - (scores[0].softmax(0) * scores[1].softmax(0)).sum())) < 0.01


def test_a_sum_that_rounding_leaves_below_one_is_reached_too(monkeypatch):
    scores = torch.randn(500, 50, generator=torch.Generator().manual_seed(0))
    sums = scores.softmax(dim=1).sum(dim=1, dtype=torch.float64)
    assert (sums < 1).any() and (sums > 1).any()
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.zeros(shape, dtype=torch.float64))
    drawn = MultinomialSampling()(torch.zeros(500, 1), scores).argmax(dim=1)
    assert (drawn == 49).all()  # the end of the sum is the last token's
