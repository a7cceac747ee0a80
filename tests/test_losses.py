"""Losses against numbers worked out by hand and a slow version in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.losses import (
    advantages,
    kl_divergence,
    matching_loss,
    policy_gradient_loss,
    reference_weights,
    sequence_log_probs,
    token_log_probs,
    weighted_teacher_forcing_loss,
)

LN2 = math.log(2)


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logs(probabilities) -> torch.Tensor:
    """Logits whose softmax is the given table, moved by a constant, which must not matter."""
    return float64(probabilities).log() + 7.0


# --- log-probabilities -------------------------------------------------------------------------------------------

# Two captions over three tokens. The second has two real tokens; what its padded position predicts must not matter.
PROBABILITIES = [
    [[1 / 2, 1 / 4, 1 / 4], [1 / 8, 1 / 8, 3 / 4], [1 / 4, 1 / 2, 1 / 4]],
    [[1 / 4, 1 / 4, 1 / 2], [1 / 2, 1 / 4, 1 / 4], [0.98, 0.01, 0.01]],
]
LABELS = torch.tensor([[0, 1, 2], [2, 1, -100]])
# log2 of the labels' probabilities: -1, -3, -2 and -1, -2, nothing
TOKENS = [[-LN2, -3 * LN2, -2 * LN2], [-LN2, -2 * LN2, 0.0]]


def test_token_log_probs_by_hand():
    torch.testing.assert_close(token_log_probs(logs(PROBABILITIES), LABELS), float64(TOKENS))


def test_sequence_log_probs_by_hand():
    tokens = float64(TOKENS)
    # (-1 - 3 - 2) / 3 = -2 and (-1 - 2) / 2 = -1.5, in units of ln 2
    torch.testing.assert_close(sequence_log_probs(tokens, LABELS), float64([-2 * LN2, -1.5 * LN2]))
    torch.testing.assert_close(
        sequence_log_probs(tokens, LABELS, "constant", 12), float64([-6 * LN2 / 12, -3 * LN2 / 12])
    )


def test_more_padding_changes_nothing():
    wider = torch.cat([LABELS, torch.full((2, 4), -100)], dim=1)
    logits = torch.cat([logs(PROBABILITIES), torch.randn(2, 4, 3, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(
        sequence_log_probs(token_log_probs(logits, wider), wider), float64([-2 * LN2, -1.5 * LN2])
    )


def test_padded_values_never_enter_the_sum():
    tokens = float64([[-1.0, 50.0]])
    assert sequence_log_probs(tokens, torch.tensor([[3, -100]])).tolist() == [-1.0]


def plain_token_log_probs(logits, labels):
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    chosen = logits.log_softmax(dim=-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return chosen.masked_fill(labels == -100, 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_token_log_probs_and_their_gradient_are_those_of_log_softmax(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(4, 6, 30, generator=generator)).to(dtype)
    labels = torch.randint(0, 30, (4, 6), generator=generator).index_fill(1, torch.tensor([5]), -100)
    weights = torch.randn(4, 6, generator=generator)
    found = []
    for function in (token_log_probs, plain_token_log_probs):
        ours = logits.clone().requires_grad_()
        values = function(ours, labels)
        (values * weights.to(values)).sum().backward()
        found.append((values.detach(), ours.grad))
    torch.testing.assert_close(found[0], found[1])
    assert found[0][1].dtype == dtype


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 4 + 2)])  # raised, then rounded
def test_token_log_probs_keep_the_logits_alone_and_make_one_gradient(dtype, width):
    logits = torch.randn(8, 16, 4096, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 4096, (8, 16))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = token_log_probs(logits, labels).sum()
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() >= logits.numel()] == [logits.data_ptr()]
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    made = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert made == pytest.approx(logits.numel() * width, rel=0.05)


def test_caption_without_a_real_token_has_log_prob_zero_and_no_gradient():
    logits = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.full((1, 2), -100)
    value = sequence_log_probs(token_log_probs(logits, labels), labels)
    value.sum().backward()
    assert value.tolist() == [0.0]
    assert logits.grad.abs().max() == 0


def test_one_row_and_one_token():
    labels = torch.tensor([[1]])
    assert token_log_probs(logs([[[3 / 4, 1 / 4]]]), labels).item() == pytest.approx(-2 * LN2)


def test_gradient_of_the_policy_gradient_is_advantage_times_softmax_minus_one_hot():
    # L = -A * (1/1) * log p(label): dL/dlogits = A * (p - onehot) = 3 * (1/4, 3/4 - 1, 0)
    logits = logs([[[1 / 4, 3 / 4 - 1e-12, 1e-12]]]).requires_grad_()
    labels = torch.tensor([[1]])
    loss = policy_gradient_loss(sequence_log_probs(token_log_probs(logits, labels), labels), float64([3.0]))
    loss.backward()
    torch.testing.assert_close(logits.grad, float64([[[0.75, -0.75, 0.0]]]), atol=1e-10, rtol=0)


def test_half_precision_logits_are_raised():
    logits = torch.randn(4, 5, 1000).bfloat16()
    labels = torch.randint(1000, (4, 5))
    result = token_log_probs(logits, labels)
    assert result.dtype == torch.float32
    exact = logits.double().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(result.double(), exact, atol=1e-5, rtol=0)


def test_large_logits_stay_finite():
    logits = torch.tensor([[[1e4, 0.0], [-1e4, 0.0]]])
    assert token_log_probs(logits, torch.tensor([[0, 0]])).tolist() == [[0.0, -1e4]]


# --- advantages --------------------------------------------------------------------------------------------------


def test_advantages_by_hand():
    rewards = float64([[1, 2, 6], [4, 4, 4]])
    assert advantages(rewards).tolist() == [[1, 2, 6], [4, 4, 4]]
    # the greedy captions got 2 and 5
    assert advantages(rewards, "greedy", float64([2, 5])).tolist() == [[-1, 0, 4], [-1, -1, -1]]
    # the means of the others: (2+6)/2, (1+6)/2, (1+2)/2
    assert advantages(rewards, "leave_one_out").tolist() == [[-3, -1.5, 4.5], [0, 0, 0]]


def test_advantages_are_detached():
    assert not advantages(float64([[1.0]]).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advantages(torch.ones(3, 1), "leave_one_out"), "at least 2 rollouts"),
        (lambda: advantages(torch.ones(3, 2), "greedy"), "needs greedy_rewards"),
        (lambda: advantages(torch.ones(3, 2), "greedy", torch.ones(3, 1)), "same shape"),
        (lambda: advantages(torch.ones(3, 2), "mean"), "choose one of none, greedy, leave_one_out"),
        (lambda: advantages(torch.ones(3)), r"\(images, rollouts\)"),
        (lambda: policy_gradient_loss(torch.ones(4), torch.ones(2, 2)), "same shape"),
        (lambda: policy_gradient_loss(torch.ones(2), torch.ones(2, 2)), "same shape"),
        (lambda: weighted_teacher_forcing_loss(torch.ones(2), torch.ones(2, 1)), "same shape"),
        (lambda: reference_weights(torch.ones(2), "softmin"), "choose one of clamp"),
        (lambda: sequence_log_probs(torch.ones(2, 3), torch.ones(2, 3), "length"), "choose one of tokens, constant"),
        (lambda: sequence_log_probs(torch.ones(2, 3), torch.ones(2, 3), "constant"), "at least 1, got None"),
        (lambda: sequence_log_probs(torch.ones(2, 3), torch.ones(2, 3), "constant", 0), "at least 1, got 0"),
        (lambda: sequence_log_probs(torch.ones(2, 3), torch.ones(2, 2)), "same shape"),
        (lambda: token_log_probs(torch.ones(2, 3, 5), torch.ones(3, 3)), "do not match in shape"),
        (lambda: kl_divergence(torch.ones(2, 3, 5), torch.ones(2, 3, 4), torch.ones(2, 3)), "same shape"),
        (lambda: kl_divergence(torch.ones(2, 3, 5), torch.ones(2, 3, 5), torch.ones(2, 4)), "do not match in shape"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- losses and weights ------------------------------------------------------------------------------------------


def test_losses_by_hand():
    log_probs = float64([-2.0, -1.0, -4.0])
    # -(0.5 * -2 + -1 * -1 + 2 * -4) / 3 = -(-1 + 1 - 8) / 3
    assert policy_gradient_loss(log_probs, float64([0.5, -1, 2])).item() == pytest.approx(8 / 3)
    # -(0 * -2 + 3 * -1 + 0.25 * -4) / 3 = 4 / 3
    assert weighted_teacher_forcing_loss(log_probs, float64([0, 3, 0.25])).item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("loss", [policy_gradient_loss, weighted_teacher_forcing_loss])
def test_factors_get_no_gradient(loss):
    log_probs, factors = float64([-1.0, -2.0]).requires_grad_(), float64([3.0, 5.0]).requires_grad_()
    loss(log_probs, factors).backward()
    assert factors.grad is None
    assert log_probs.grad.tolist() == [-1.5, -2.5]


def test_reference_weights_by_hand():
    rewards = float64([-math.log(2), 0.0, math.log(2.5)]).requires_grad_()
    # e^R = 1/2, 1, 5/2, their sum 4, so 3 * softmax = 3/8, 3/4, 15/8
    expected = {
        "clamp": [0, 0, math.log(2.5)],
        "softmax": [3 / 8, 3 / 4, 15 / 8],
        "shift": [0, math.log(2), math.log(5)],
        "raw": [-math.log(2), 0, math.log(2.5)],
        "constant": [1, 1, 1],
    }
    for policy, weights in expected.items():
        result = reference_weights(rewards, policy)
        torch.testing.assert_close(result, float64(weights))
        assert not result.requires_grad


def test_reference_weights_compare_all_entries_of_a_table():
    table = float64([[0.0, math.log(3)], [0.0, math.log(3)]])
    assert reference_weights(table, "softmax").tolist() == [pytest.approx([0.5, 1.5])] * 2
    assert reference_weights(table - 1, "shift").tolist() == [pytest.approx([0, math.log(3)])] * 2


def test_reference_weights_of_one_row():
    one = float64([-0.3])
    assert {p: reference_weights(one, p).item() for p in ("clamp", "softmax", "shift", "raw", "constant")} == {
        "clamp": 0.0,
        "softmax": 1.0,
        "shift": 0.0,
        "raw": -0.3,
        "constant": 1.0,
    }


# --- KL ----------------------------------------------------------------------------------------------------------


def test_kl_by_hand():
    # position 1: p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3); position 2: p = q: 0; position 3: padding
    policy = logs([[[1 / 2, 1 / 2], [1 / 8, 7 / 8], [1 / 2, 1 / 2]]])
    frozen = logs([[[1 / 4, 3 / 4], [1 / 8, 7 / 8], [0.01, 0.99]]]) - 3.0
    expected = (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2
    assert kl_divergence(policy, frozen, torch.tensor([[4, 4, -100]])).item() == pytest.approx(expected)


def test_kl_moves_the_policy_only():
    policy, frozen = torch.randn(2, 3, 4).requires_grad_(), torch.randn(2, 3, 4).requires_grad_()
    kl_divergence(policy, frozen, torch.zeros(2, 3)).backward()
    assert policy.grad.abs().max() > 0
    assert frozen.grad is None


def test_kl_without_real_tokens_is_zero():
    assert kl_divergence(torch.randn(1, 2, 3), torch.randn(1, 2, 3), torch.full((1, 2), -100)).item() == 0


# --- against plain Python ----------------------------------------------------------------------------------------


@st.composite
def scored_captions(draw):
    rows, length, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(2, 5))
    number = st.floats(-20, 20)
    table = st.lists(
        st.lists(st.lists(number, min_size=vocabulary, max_size=vocabulary), min_size=length, max_size=length),
        min_size=rows,
        max_size=rows,
    )
    labels = draw(
        st.lists(
            st.lists(st.sampled_from([-100, *range(vocabulary)]), min_size=length, max_size=length),
            min_size=rows,
            max_size=rows,
        )
    )
    return draw(table), draw(table), labels


def slow_log_softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    total = top + math.log(math.fsum(math.exp(score - top) for score in scores))
    return [score - total for score in scores]


@settings(max_examples=100, deadline=None)
@given(scored_captions())
def test_against_plain_python(case):
    logits, frozen, labels = case
    tokens, sequences, divergences = [], [], []
    for row, frozen_row, row_labels in zip(logits, frozen, labels, strict=True):
        tokens.append([])
        for scores, frozen_scores, label in zip(row, frozen_row, row_labels, strict=True):
            log_p, log_q = slow_log_softmax(scores), slow_log_softmax(frozen_scores)
            tokens[-1].append(log_p[label] if label != -100 else 0.0)
            if label != -100:
                divergences.append(math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)))
        real = sum(label != -100 for label in row_labels)
        sequences.append(math.fsum(tokens[-1]) / real if real else 0.0)
    divergence = math.fsum(divergences) / len(divergences) if divergences else 0.0

    ids = torch.tensor(labels)
    result = token_log_probs(float64(logits), ids)
    torch.testing.assert_close(result, float64(tokens), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(sequence_log_probs(result, ids), float64(sequences), atol=1e-10, rtol=1e-10)
    assert kl_divergence(float64(logits), float64(frozen), ids).item() == pytest.approx(divergence, abs=1e-10)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(2, 4), st.data())
def test_leave_one_out_against_plain_python(images, rollouts, data):
    row = st.lists(st.floats(-5, 5), min_size=rollouts, max_size=rollouts)
    table = data.draw(st.lists(row, min_size=images, max_size=images))
    expected = [[r - (sum(line) - r) / (rollouts - 1) for r in line] for line in table]
    torch.testing.assert_close(advantages(float64(table), "leave_one_out"), float64(expected), atol=1e-10, rtol=0)


# --- captions and images -----------------------------------------------------------------------------------------


def test_captions_of_an_image_do_not_compete():
    """Two captions of the first image, one of the second, and an image without captions."""
    logits = float64([[2.0, 0.5, 1.0], [1.0, 1.5, 0.0], [0.0, 3.0, 2.5]]).requires_grad_()
    own = (2.0, 1.0, 3.0)
    to_images = [math.log(sum(map(math.exp, row))) - each for row, each in zip(logits.tolist(), own, strict=True)]
    to_captions = [
        math.log(math.exp(2) + math.exp(0)) - 2,  # the second caption of the image is not in the sum
        math.log(math.exp(1) + math.exp(0)) - 1,
        math.log(math.exp(3) + math.exp(0.5) + math.exp(1.5)) - 3,
    ]
    loss = matching_loss(logits, torch.tensor([0, 0, 1]))
    assert loss.item() == pytest.approx(sum(to_images) / 6 + sum(to_captions) / 6)
    loss.backward()
    assert logits.grad.isfinite().all()


def test_pairs_that_are_left_out_are_not_compared():
    logits, left_out = float64([[2.0, 0.5], [1.0, 1.5]]), torch.tensor([[False, True], [False, False]])
    loss = matching_loss(logits, torch.tensor([0, 1]), left_out)
    wanted = 0 + math.log(math.exp(1) + math.exp(1.5)) - 1.5 + math.log(math.exp(2) + math.exp(1)) - 2 + 0
    assert loss.item() == pytest.approx(wanted / 4)


def test_a_lone_image_has_no_negatives():
    logits = float64([[2.0], [1.0]]).requires_grad_()
    loss = matching_loss(logits, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()
