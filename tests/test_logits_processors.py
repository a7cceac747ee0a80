"""Against transformers' own processor."""

from __future__ import annotations

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from hf_distinct.logits_processors import NoRepeatNGrams


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
