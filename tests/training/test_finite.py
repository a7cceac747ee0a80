"""Losses, gradients and weights that are NaN or infinite are named."""

import pytest
import torch
from torch import nn

from hf_distinct.training.finite import not_finite, step_problems, weight_problems


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_that_is_not_finite_is_named(bad):
    good, whole = torch.ones(3), torch.tensor([1, 2])
    tensors = [("a", good), ("none", None), ("whole", whole), ("b", torch.tensor([1, bad])), ("c", torch.tensor(bad))]
    assert not_finite(tensors) == "b"
    assert not_finite(tensors[:3]) is None
    assert not_finite([]) is None


def test_a_step_is_refused_for_its_loss_or_a_gradient():
    model = nn.Linear(2, 1)
    loss = model(torch.ones(1, 2)).sum()
    loss.backward()
    assert list(step_problems(loss, model)) == []
    assert list(step_problems(torch.tensor(torch.nan), model)) == ["The loss is nan."]
    model.weight.grad.fill_(3e38)  # finite, though their sum is not
    assert list(step_problems(loss, model)) == []
    model.bias.grad.fill_(torch.inf)
    assert list(step_problems(loss, model)) == ["The gradient of bias is NaN or infinite."]
    for values in ([torch.inf, -torch.inf], [torch.nan, 0.0]):
        model.weight.grad[0] = torch.tensor(values)
        model.bias.grad.zero_()
        assert list(step_problems(loss, model)) == ["The gradient of weight is NaN or infinite."]


def test_weights_and_buffers_are_looked_at():
    model = nn.BatchNorm1d(2)
    assert list(weight_problems(model)) == []
    model.running_var[1] = torch.nan
    assert list(weight_problems(model)) == ["The weights running_var are NaN or infinite."]


def test_weights_are_looked_at_in_the_precision_that_they_are_saved_in():
    model = nn.Linear(1, 1)
    model.weight.data.fill_(1e5)
    assert list(weight_problems(model)) == []
    assert list(weight_problems(model, torch.float16)) == ["The weights weight are NaN or infinite in torch.float16."]
