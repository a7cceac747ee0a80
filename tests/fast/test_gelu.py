"""The fused activation in a captioner, beside the stock one: same logits, same gradients, less that is kept."""

from __future__ import annotations

import copy

import tiny
import torch
from torch import nn
from transformers.activations import NewGELUActivation

from hf_distinct.captioner import caption_logits
from hf_distinct.fast.gelu import fuse_gelu

LABELS = torch.randint(3, 20, (2, 6), generator=torch.Generator().manual_seed(0))


def logits_gradients_and_bytes(model):
    """Of one decoder pass; the bytes are those of all tensors that autograd keeps for the backward pass."""
    hidden = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = caption_logits(model, hidden, LABELS)
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.decoder.named_parameters()}
    return logits.detach(), gradients, sum(kept.values())


def test_same_logits_and_gradients_with_less_kept(tiny_models):
    stock = tiny.load_captioner(tiny_models)[0].double().eval()
    fused = copy.deepcopy(stock)
    fuse_gelu(fused)
    logits, gradients, kept = logits_gradients_and_bytes(stock)
    our_logits, our_gradients, our_kept = logits_gradients_and_bytes(fused)
    torch.testing.assert_close(our_logits, logits)
    torch.testing.assert_close(our_gradients, gradients)
    width = sum(block.mlp.c_fc.nf for block in stock.decoder.transformer.h) * LABELS.numel() * 8
    assert kept - our_kept >= 3 * width


def test_state_and_config_know_nothing_of_it(tiny_models):
    model = tiny.load_captioner(tiny_models)[0]
    names, config = list(model.state_dict()), model.config.to_dict()
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    fuse_gelu(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    assert (list(model.state_dict()), model.config.to_dict()) == (names, config)


def test_other_activations_stay():
    model = nn.Sequential(nn.ReLU(), nn.GELU())
    fuse_gelu(model)
    assert [type(layer) for layer in model] == [nn.ReLU, nn.GELU]
    assert model[1].approximate == "none"
