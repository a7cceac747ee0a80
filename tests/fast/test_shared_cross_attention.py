"""Captions that share their image's cross-attention, against stock models that are given its states once a caption."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LogitsProcessorList,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct.captioner import caption_logits
from hf_distinct.fast.shared_cross_attention import ImageCache, share_images
from hf_distinct.generation.guidance import ImageGuidance
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.generation.rollouts import generate_labels, rollout_config

pytestmark = pytest.mark.both_ends  # it hangs on how transformers writes a layer

IMAGES, PER_IMAGE = 3, 4
HOW = {
    "greedy": {},
    "beam": {"num_beams": 4, "no_repeat_ngram_size": 3},
    "sample": {"do_sample": True, "num_return_sequences": PER_IMAGE},
}


def captioner(tiny_models, attention="sdpa"):
    model = tiny.exact_captioner(tiny_models)
    model.decoder.set_attn_implementation(attention)
    return model


def images():
    return tiny.encoded(IMAGES)


def captions():
    return torch.randint(3, 20, (IMAGES * PER_IMAGE, 6), generator=torch.Generator().manual_seed(1))


def rows_of_keys(model, seen):
    for name, layer in model.decoder.named_modules():
        if name.endswith("crossattention.c_attn"):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("how", HOW)
def test_captions_are_those_of_generate_and_keys_are_computed_once_an_image(tiny_models, how, attention):
    stock, model = captioner(tiny_models, attention), captioner(tiny_models, attention)
    torch.manual_seed(0)
    states, settings = images(), HOW[how]
    if how == "sample":
        states = states.repeat_interleave(PER_IMAGE, dim=0)
        settings = {"logits_processor": LogitsProcessorList([MultinomialSampling()])}
    expected = stock.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), **settings)[:, 1:]
    seen: list[int] = []
    rows_of_keys(model, seen)
    torch.manual_seed(0)
    labels = generate_labels(model, images(), rollout_config(model, **HOW[how]))
    assert torch.equal(labels, expected.masked_fill(labels == -100, -100))
    assert len(expected.unique(dim=0)) > 1
    assert seen == [IMAGES] * model.decoder.config.n_layer


def test_states_of_another_width_are_projected_once_an_image(tiny_models):
    model = captioner(tiny_models)
    encoder, decoder = model.config.encoder, model.config.decoder
    encoder.hidden_size = 48
    wide: Any = VisionEncoderDecoderModel(
        VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    ).double()
    wide.generation_config = model.generation_config
    wide.eval()
    states, seen = torch.cat([images(), images()[..., :16]], dim=-1), []
    expected = wide.generate(encoder_outputs=BaseModelOutput(last_hidden_state=states), num_beams=4)[:, 1:]
    wide.enc_to_dec_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:2].numel()))
    labels = generate_labels(wide, states, rollout_config(wide, num_beams=4))
    assert torch.equal(labels, expected.masked_fill(labels == -100, -100))
    assert seen[0] == states.shape[:2].numel() and set(seen[1:]) == {IMAGES}


def test_passes_that_a_logits_processor_makes_have_their_own_images(tiny_models):
    stock, model = captioner(tiny_models), captioner(tiny_models)
    config = rollout_config(model, num_beams=4)
    guides = [LogitsProcessorList([ImageGuidance(each, 3.0)]) for each in (stock, model)]
    states = BaseModelOutput(last_hidden_state=images())
    expected = stock.generate(encoder_outputs=states, num_beams=4, logits_processor=guides[0])[:, 1:]
    labels = generate_labels(model, images(), config, guides[1])
    assert torch.equal(labels, expected.masked_fill(labels == -100, -100))
    assert labels.tolist() != generate_labels(model, images(), config).tolist()


def test_scoring_takes_the_causal_kernel_without_a_mask(tiny_models, monkeypatch):
    model, seen = captioner(tiny_models), []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        seen.append((kwargs.get("is_causal"), kwargs.get("attn_mask")))
        return attention(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    caption_logits(model, images(), captions())
    assert seen == [(True, None), (False, None)] * model.decoder.config.n_layer


def test_captions_that_are_not_as_many_for_each_image_are_refused(tiny_models):
    model = captioner(tiny_models)
    with pytest.raises(ValueError, match="7 captions cannot be divided evenly among 3 images"):
        caption_logits(model, images(), captions()[:7])


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_and_gradients_are_those_of_repeated_images(tiny_models, attention, checkpointed):
    stock, model = captioner(tiny_models, attention), captioner(tiny_models, attention)
    if checkpointed:
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
        model.decoder.transformer.train()
        for module in model.decoder.modules():
            module.p = 0.0  # the dropouts
    once, often = images().requires_grad_(), images().requires_grad_()
    seen: list[int] = []
    rows_of_keys(model, seen)
    shared = caption_logits(model, once, captions())
    plain = caption_logits(stock, often.repeat_interleave(PER_IMAGE, dim=0), captions())
    torch.testing.assert_close(shared, plain)
    (shared**2).sum().backward()
    (plain**2).sum().backward()
    assert set(seen) == {IMAGES}
    torch.testing.assert_close(once.grad, often.grad)
    for ours, theirs in zip(model.decoder.parameters(), stock.decoder.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_search_continues_beams_but_leaves_images_where_they_are():
    cache = ImageCache(torch.zeros(2, 1, 1))
    for part, rows in ((cache.self_attention_cache, 4), (cache.cross_attention_cache, 2)):
        part.update(torch.arange(rows).view(rows, 1, 1, 1), torch.zeros(rows, 1, 1, 1), 0)
    cache.reorder_cache(torch.tensor([1, 1, 3, 2]))
    assert cache.self_attention_cache.layers[0].keys.flatten().tolist() == [1, 1, 3, 2]
    assert cache.cross_attention_cache.layers[0].keys.flatten().tolist() == [0, 1]


def test_a_copy_shares_by_its_own_weights_and_being_told_twice_changes_nothing(tiny_models):
    model = captioner(tiny_models)
    assert share_images(model.decoder) and share_images(model.decoder)
    other = copy.deepcopy(model)
    assert share_images(other.decoder)
    expected = caption_logits(model, images(), captions())
    torch.nn.init.zeros_(model.decoder.transformer.h[0].crossattention.c_proj.weight)
    torch.testing.assert_close(caption_logits(other, images(), captions()), expected)
    assert not torch.allclose(caption_logits(model, images(), captions()), expected)


def test_other_decoders_are_given_repeated_images(tiny_models):
    model = captioner(tiny_models)
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        is_decoder=True, add_cross_attention=True, vocab_size=model.config.decoder.vocab_size, **settings
    )
    model.decoder = BertLMHeadModel(config).double().eval()
    assert not share_images(model.decoder)
    expected = caption_logits(model, images().repeat_interleave(PER_IMAGE, dim=0), captions())
    torch.testing.assert_close(caption_logits(model, images(), captions()), expected)
    labels = generate_labels(model, images(), rollout_config(model, **HOW["beam"]))
    plain = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=images()), **HOW["beam"])[:, 1:]
    assert torch.equal(labels, plain.masked_fill(labels == -100, -100))


def test_rows_of_a_pass_by_hand():
    cache = ImageCache(torch.zeros(2, 1, 1))
    hidden = torch.tensor([[[5.0, 6.0]], [[7.0, 8.0]]])
    assert cache.spread(hidden) is hidden and cache.pick(hidden) is hidden
    cache.captions, cache.rows = 4, torch.tensor([3, 0])
    assert cache.spread(hidden).tolist() == [[[7, 8]], [[0, 0]], [[0, 0]], [[5, 6]]]
    assert torch.equal(cache.pick(cache.spread(hidden)), hidden)
