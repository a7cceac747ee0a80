"""Captions that have ended leave the passes, and what is written is what stock transformers writes."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct.generation.guidance import ImageGuidance
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.generation.rollouts import generate_labels, rollout_config

pytestmark = pytest.mark.both_ends  # it hangs on how transformers writes
IMAGES, PER_IMAGE = 4, 5


@pytest.fixture
def model(tiny_models):
    return tiny.exact_captioner(tiny_models)


def write(model, *processors):
    config = rollout_config(model, do_sample=True, num_return_sequences=PER_IMAGE, max_new_tokens=13)
    torch.manual_seed(0)
    return generate_labels(model, tiny.encoded(IMAGES), config, LogitsProcessorList(processors))


def plain(model, *processors):
    states = BaseModelOutput(last_hidden_state=tiny.encoded(IMAGES).repeat_interleave(PER_IMAGE, dim=0))
    drawing = LogitsProcessorList([*processors, MultinomialSampling()])
    torch.manual_seed(0)
    return model.generate(encoder_outputs=states, logits_processor=drawing, max_new_tokens=13)[:, 1:]


def same(labels, tokens):
    return torch.equal(labels, tokens.masked_fill(labels == -100, -100)) and bool((labels == -100).any())


def test_samples_are_those_of_stock_transformers_and_passes_become_narrow(model, tiny_models):
    rows = tiny.rows_of_passes(model)
    labels = write(model)
    assert same(labels, plain(tiny.exact_captioner(tiny_models)))
    ends = model.generation_config.eos_token_id
    unfinished = [int((labels[:, :place] != ends).all(dim=1).sum()) for place in range(labels.shape[1])]
    assert rows[0] == unfinished[0] == IMAGES * PER_IMAGE
    assert rows == sorted(rows, reverse=True) and 0 < rows[-1] < IMAGES * PER_IMAGE / 2
    assert all(one <= other <= one / 0.8 + 1 for one, other in zip(unfinished, rows, strict=True))


def test_greedy_captions_too(model, tiny_models):
    rows = tiny.rows_of_passes(model)
    labels = generate_labels(model, tiny.encoded(IMAGES), rollout_config(model, max_new_tokens=13))
    states = BaseModelOutput(last_hidden_state=tiny.encoded(IMAGES))
    assert same(labels, tiny.exact_captioner(tiny_models).generate(encoder_outputs=states, max_new_tokens=13)[:, 1:])
    assert rows[-1] < IMAGES


@pytest.mark.parametrize("name", ["pad_token_id", "decoder_start_token_id"])
def test_an_end_token_that_is_also_padding_or_start(model, tiny_models, name):
    other = tiny.exact_captioner(tiny_models)
    for each in (model, other):
        for config in (each.config, each.generation_config):
            setattr(config, name, config.eos_token_id)
    assert same(write(model), plain(other))


def test_a_caption_that_says_padding_before_its_end_goes_on(model, tiny_models):
    pad = model.generation_config.pad_token_id

    def say_padding(input_ids, scores):
        if input_ids.shape[1] != 3:
            return scores
        said = scores.clone()
        said[::2] = torch.full_like(said[::2], -torch.inf).index_fill(1, torch.tensor([pad]), 0.0)
        return said

    labels = write(model, say_padding)
    assert same(labels, plain(tiny.exact_captioner(tiny_models), say_padding))
    said = labels[:, 2] == pad
    assert said.any() and (labels[said, 3] != pad).any()


def test_processors_see_all_captions_and_their_own_passes_have_all(model, tiny_models):
    other = tiny.exact_captioner(tiny_models)
    assert same(write(model, ImageGuidance(model, 1.5)), plain(other, ImageGuidance(other, 1.5)))


def test_nothing_is_left_in_the_model(model):
    write(model)
    assert not model._forward_hooks and not model._forward_pre_hooks
