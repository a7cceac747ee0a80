"""Products by oneDNN are what they are without it, wherever it may be used, and it is used nowhere else."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.pytorch_utils import Conv1D

from hf_distinct.fast.narrow_products import narrow_products
from hf_distinct.generation.rollouts import generate_labels, rollout_config


class Calls(TorchDispatchMode):
    """Counts the products that oneDNN computes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "mkldnn::_linear" in str(func.name())
        return func(*args, **(kwargs or {}))


def products(model, hidden):
    """What a model makes of its input while oneDNN may be used, and how many products that computes."""
    with torch.no_grad(), Calls() as calls, narrow_products(model):
        return model(hidden), calls.count


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(600,), (1, 600), (6, 600), (3, 2, 600)])
def test_products_are_those_of_torch(shape, bias):
    torch.manual_seed(0)
    layers = nn.ModuleDict({"linear": nn.Linear(600, 500, bias=bias), "conv1d": Conv1D(500, 600)})
    hidden = torch.randn(shape)
    for layer in layers.values():
        found, calls = products(layer, hidden)
        assert calls == 1
        torch.testing.assert_close(found, layer(hidden).detach(), rtol=1e-5, atol=1e-5)


def test_it_is_left_alone_where_it_would_not_be_the_same_or_not_be_faster():
    class Other(nn.Linear):
        pass

    hooked = nn.Linear(600, 500)
    hooked.forward = lambda hidden: hidden
    half = nn.Linear(600, 500).bfloat16()
    for layer in (nn.Linear(512, 512), Other(600, 500), hooked, half):
        width = layer.in_features
        hidden = torch.randn(2, width, dtype=layer.weight.dtype)
        found, calls = products(layer, hidden)
        assert calls == 0 and torch.equal(found, layer(hidden))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products(nn.Linear(600, 500), torch.randn(2, 600))[1] == 0


def test_the_weights_of_the_moment_are_taken_and_layers_are_themselves_again():
    layer, hidden = nn.Linear(600, 500), torch.ones(2, 600)
    with pytest.raises(KeyError), narrow_products(layer):
        raise KeyError
    with torch.no_grad(), narrow_products(layer):
        layer.weight.fill_(0.5)
        layer.bias.fill_(1.0)
        assert layer(hidden).unique().tolist() == [301.0]
    assert "forward" not in vars(layer)
    assert layer(hidden).requires_grad


@pytest.mark.parametrize("beams", [1, 4])
def test_a_wide_decoder_writes_the_captions_of_stock_transformers(tiny_models, beams):
    stock = tiny.load_captioner(tiny_models)[0].eval()
    torch.manual_seed(0)
    own = stock.config.decoder
    wide = GPT2Config(
        vocab_size=own.vocab_size, n_positions=32, n_embd=528, n_layer=2, n_head=4,
        initializer_range=0.1, is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    stock.decoder, stock.config.decoder = GPT2LMHeadModel(wide).eval(), wide
    stock.enc_to_dec_proj = nn.Linear(stock.config.encoder.hidden_size, 528)
    model, hidden = copy.deepcopy(stock), torch.randn(3, 17, 32)
    with Calls() as calls:
        labels = generate_labels(model, hidden, rollout_config(model, num_beams=beams, max_new_tokens=9))
    assert calls.count
    expected = stock.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden), num_beams=beams, max_new_tokens=9
    )[:, 1:]
    assert torch.equal(labels, expected.masked_fill(labels == -100, -100))
    assert len({tuple(row) for row in labels.tolist()}) == 3
