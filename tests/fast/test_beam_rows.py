"""What a search leaves out of its passes changes nothing of what stock transformers finds."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct.fast.beam_rows import BeamRows
from hf_distinct.generation.rollouts import generate_labels, rollout_config

pytestmark = pytest.mark.both_ends  # it hangs on how transformers searches
IMAGES, BEAMS, LONGEST = 4, 3, 13


@pytest.fixture
def model(tiny_models):
    return tiny.exact_captioner(tiny_models)


def end_after(model, *tokens, score=-0.01):
    """Makes the captions of each image likely to end after so many tokens, and not before."""
    end = model.generation_config.eos_token_id
    limits = torch.tensor(tokens).repeat_interleave(BEAMS)

    def processor(input_ids, scores):
        scores = scores.clone()
        scores[:, end] = torch.where(limits < input_ids.shape[1], score, -99.0).to(scores)
        return scores

    return processor


@pytest.mark.parametrize(
    "how",
    [{}, {"early_stopping": True}, {"early_stopping": "never", "length_penalty": 2.0}, {"num_return_sequences": 2}],
)
def test_captions_are_those_of_stock_transformers_whenever_each_search_ends(model, tiny_models, how):
    stock, rows = tiny.exact_captioner(tiny_models), tiny.rows_of_passes(model)
    config = rollout_config(model, num_beams=BEAMS, max_new_tokens=LONGEST, **how)
    left_out = 0
    for seed in range(4):
        rows.clear()
        ends = LogitsProcessorList([end_after(model, *torch.randperm(LONGEST)[:IMAGES].tolist())])
        labels = generate_labels(model, tiny.encoded(IMAGES, seed), config, ends)
        expected = stock.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=tiny.encoded(IMAGES, seed)),
            generation_config=rollout_config(stock, num_beams=BEAMS, max_new_tokens=LONGEST, **how),
            logits_processor=ends,
        )[:, 1:]
        assert torch.equal(labels, expected.masked_fill(labels == -100, -100))
        assert rows[0] == IMAGES * BEAMS and rows == sorted(rows, reverse=True)
        left_out += rows[-1] < rows[0]
    assert left_out or how.get("early_stopping") == "never"


def test_beams_leave_once_their_image_can_gain_nothing(model):
    rows = tiny.rows_of_passes(model)
    config = rollout_config(model, num_beams=BEAMS, max_new_tokens=LONGEST)
    labels = generate_labels(
        model, tiny.encoded(IMAGES, 0), config, LogitsProcessorList([end_after(model, 1, 99, 4, 1, score=99.0)])
    )
    assert (labels != -100).sum(dim=1).tolist() == [2, 13, 5, 2]
    assert rows == [12, 12, 6, 6, 6] + [3] * 8


def test_rows_by_hand():
    """Two images of two beams and a greedy caption: 0 1 | 2 and 3 4 | 5."""
    cache = BeamRows(torch.zeros(2, 1, 1), beams=2, greedy=True, start=0, ends=[8, 9])
    assert cache.rows.tolist() == [0, 1, 3, 4, 2, 5]
    past = torch.arange(6.0).view(6, 1, 1, 1)
    cache.self_attention_cache.update(past, past, 0)
    cache.reorder_cache(torch.tensor([1, 1, 3, 2]))
    cache.searching, cache.tokens = torch.tensor([False, True]), torch.tensor([[0, 7], [0, 8]])
    cache._choose_rows()
    assert cache.rows.tolist() == [3, 4, 2]  # the second greedy caption has ended
    # Rows 2 and 3 were the beams of the second image, which change places; row 4 was the first greedy caption.
    assert cache.self_attention_cache.layers[0].keys.flatten().tolist() == [3, 2, 4]


def test_nothing_is_left_in_the_model(model):
    generate_labels(model, tiny.encoded(IMAGES, 0), rollout_config(model, num_beams=2))
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert "_check_early_stop_heuristic" not in vars(model)
