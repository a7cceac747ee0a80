"""Against transformers' own processor, and against greedy decoding."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from hf_distinct.logits_processors import GreedyRows, NoRepeatNGrams
from hf_distinct.rollout import generate_labels, rollout_config


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


@torch.no_grad()
def test_the_last_caption_of_each_image_is_the_greedy_one_and_the_others_are_not(tiny_models):
    model = tiny.load_captioner(tiny_models)[0].eval()
    hidden = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    config = rollout_config(model, do_sample=True, num_return_sequences=4)
    written = generate_labels(model, hidden, config, LogitsProcessorList([GreedyRows(4)])).unflatten(0, (3, 4))
    greedy = generate_labels(model, hidden, rollout_config(model))
    length = greedy.shape[1]
    assert torch.equal(written[:, 3, :length], greedy)
    assert (written[:, 3, length:] == -100).all()
    assert (written[:, :3] != written[:, 3:]).any(dim=2).sum() > 5
