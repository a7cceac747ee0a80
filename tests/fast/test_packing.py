"""Logits of real tokens are those that a pass over padded captions has, and padding costs nothing."""

from __future__ import annotations

import pytest
import tiny
import torch
from transformers import BertConfig, BertLMHeadModel

from hf_distinct.captioner import caption_logits, token_logits
from hf_distinct.fast.packing import Packing

pytestmark = pytest.mark.both_ends  # it hangs on how transformers writes a layer
IMAGES, PER_IMAGE, LENGTH = 3, 4, 7


def captioner(tiny_models, attention="sdpa"):
    model = tiny.exact_captioner(tiny_models)
    model.decoder.set_attn_implementation(attention)
    return model


def images():
    return tiny.encoded(IMAGES)


def captions():
    """Of 1 to LENGTH tokens, and one of none."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, 50, (IMAGES * PER_IMAGE, LENGTH), generator=generator)
    lengths = torch.arange(len(labels)) % (LENGTH + 1)
    return labels.masked_fill(torch.arange(LENGTH) >= lengths[:, None], -100)


def rows_of_passes(part):
    rows: list[int] = []
    part.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[:2].numel()))
    return rows


def test_by_hand():
    packing = Packing(torch.tensor([[True, True, False], [True, False, False]]))
    assert packing.positions.tolist() == [[0], [1], [0]]
    tokens = torch.tensor([[[5.0]], [[6.0]], [[7.0]]])
    assert packing.spread(tokens).tolist() == [[[5], [6], [0]], [[7], [0], [0]]]
    assert torch.equal(packing.pick(packing.spread(tokens)), tokens)


def test_logits_and_gradients_are_those_of_padded_captions_and_layers_see_real_tokens(tiny_models):
    model, plain, labels = captioner(tiny_models), captioner(tiny_models), captions()
    real, parts = labels != -100, model.decoder.transformer.h[0]
    seen = [rows_of_passes(part) for part in (parts.mlp, parts.attn.c_proj, model.decoder.lm_head)]
    ours, theirs = images().requires_grad_(), images().requires_grad_()
    found, expected = token_logits(model, ours, labels), caption_logits(plain, theirs, labels)[real]
    assert seen == [[int(real.sum())]] * 3
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for one, other in zip(model.decoder.parameters(), plain.decoder.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_padded_pass_behind_a_packed_one_is_what_it_was(tiny_models):
    model, labels = captioner(tiny_models), captions()
    before = caption_logits(model, images(), labels)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    token_logits(model, images(), labels)
    assert torch.equal(caption_logits(model, images(), labels), before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


@pytest.mark.parametrize("case", ["eager", "checkpointed", "bert", "empty"])
def test_where_captions_cannot_be_packed_they_are_padded(tiny_models, case):
    model, labels = captioner(tiny_models, "eager" if case == "eager" else "sdpa"), captions()
    if case == "checkpointed":
        model.decoder.gradient_checkpointing_enable({"use_reentrant": False})
    if case == "bert":
        config = BertConfig(
            vocab_size=53, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            is_decoder=True, add_cross_attention=True,
        )  # fmt: skip
        model.decoder, model.config.decoder = BertLMHeadModel(config).double().eval(), config
    if case == "empty":
        labels = torch.full_like(labels, -100)
    found = token_logits(model, images().requires_grad_(), labels)
    torch.testing.assert_close(found, caption_logits(model, images(), labels)[labels != -100])
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())  # as wrappers want it
