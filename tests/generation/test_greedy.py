"""Greedy captions beside others are those of a pass of their own, and the others are what they are without them."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import BertConfig, BertLMHeadModel, LogitsProcessorList

from hf_distinct.generation.greedy import generate_with_greedy
from hf_distinct.generation.guidance import ImageGuidance
from hf_distinct.generation.logits_processors import NoRepeatNGrams
from hf_distinct.generation.rollouts import generate_labels, rollout_config

pytestmark = pytest.mark.both_ends  # it hangs on how transformers searches
IMAGES = 3


@pytest.fixture
def model(tiny_models):
    return tiny.exact_captioner(tiny_models)


def same_captions(found, expected):
    """Whether labels are equal, but for columns behind the end of all."""
    width = max(found.shape[1], expected.shape[1])
    pad = [torch.nn.functional.pad(labels, (0, width - labels.shape[1]), value=-100) for labels in (found, expected)]
    return torch.equal(*pad)


def end_soon(model):
    """Makes searched captions end after three tokens, greedy ones as they like."""
    end = model.generation_config.eos_token_id

    def processor(input_ids, scores):
        return scores.index_fill(1, torch.tensor([end]), 99.0) if input_ids.shape[1] > 3 else scores

    return processor


@pytest.mark.parametrize("soon", [False, True])
@pytest.mark.parametrize("longest", [None, 3, 12])
def test_beams_and_greedy_captions_are_those_of_two_passes(model, soon, longest):
    processors = LogitsProcessorList([NoRepeatNGrams(2), *([end_soon(model)] if soon else [])])
    config = rollout_config(model, num_beams=3, max_new_tokens=longest)
    passes = []
    model.decoder.register_forward_hook(lambda *_: passes.append(1))
    for seed in range(6):
        hidden = tiny.encoded(IMAGES, seed)
        passes.clear()
        beams = generate_labels(model, hidden, config, processors)
        searched = len(passes)
        greedy = generate_labels(model, hidden, rollout_config(model, max_new_tokens=longest))
        apart = len(passes) - searched
        passes.clear()
        labels, beside = generate_with_greedy(model, hidden, config, processors)
        assert torch.equal(labels, beams)
        assert same_captions(beside, greedy)
        assert len(passes) == max(searched, apart)
        assert (apart > searched) == (soon and longest != 3)


def test_passes_that_a_logits_processor_makes_are_not_widened(model):
    processors = LogitsProcessorList([ImageGuidance(model, 2.0)])
    config = rollout_config(model, num_beams=3)
    labels, beside = generate_with_greedy(model, tiny.encoded(IMAGES, 0), config, processors)
    assert torch.equal(labels, generate_labels(model, tiny.encoded(IMAGES, 0), config, processors))
    assert same_captions(beside, generate_labels(model, tiny.encoded(IMAGES, 0), rollout_config(model)))


def test_samples_and_greedy_captions_are_rows_of_one_batch(model):
    config = rollout_config(model, do_sample=True, num_return_sequences=4)
    torch.manual_seed(0)
    labels, beside = generate_with_greedy(model, tiny.encoded(IMAGES, 0), config, LogitsProcessorList())
    assert labels.shape[0] == 4 * IMAGES
    greedy = generate_labels(model, tiny.encoded(IMAGES, 0), rollout_config(model))
    assert same_captions(beside, greedy)
    assert (labels.unflatten(0, (IMAGES, 4)) != beside[:, None]).any(dim=2).sum() > 5
    assert config.num_return_sequences == 4


def test_what_samples_are_forbidden_greedy_captions_are_not(model):
    greedy = generate_labels(model, tiny.encoded(IMAGES, 0), rollout_config(model))
    first = greedy[0, 0]

    def forbid(input_ids, scores):
        return scores.index_fill(1, first, -torch.inf)

    config = rollout_config(model, do_sample=True, num_return_sequences=2)
    labels, beside = generate_with_greedy(model, tiny.encoded(IMAGES, 0), config, LogitsProcessorList([forbid]))
    assert same_captions(beside, greedy)
    assert not (labels == first).any()


def test_decoders_that_do_not_share_images_have_a_pass_of_their_own(model):
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vocabulary = model.config.decoder.vocab_size
    config = BertConfig(is_decoder=True, add_cross_attention=True, vocab_size=vocabulary, **settings)
    model.decoder = BertLMHeadModel(config).double().eval()
    how = rollout_config(model, num_beams=3)
    labels, beside = generate_with_greedy(model, tiny.encoded(IMAGES, 0), how, LogitsProcessorList())
    assert torch.equal(labels, generate_labels(model, tiny.encoded(IMAGES, 0), how))
    assert torch.equal(beside, generate_labels(model, tiny.encoded(IMAGES, 0), rollout_config(model)))


def test_nothing_is_left_in_the_model(model):
    generate_with_greedy(model, tiny.encoded(IMAGES, 0), rollout_config(model, num_beams=2), LogitsProcessorList())
    assert not model._forward_hooks and not model._forward_pre_hooks
