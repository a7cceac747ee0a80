"""The losses of the method, as pure tensor functions.

From arXiv 2402.13936, with ``l(c)`` the length-normalised log-probability of a caption:

    L_RL  = - mean over rollouts   of A(c) * l(c)      policy_gradient_loss
    L_WTF = - mean over references of w(g) * l(g)      weighted_teacher_forcing_loss
    L     = L_RL + alpha * L_WTF + beta * KL(policy || warm-started captioner)

No function here copies a value to the host, so no call waits for the device.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

Normalization = Literal["tokens", "constant"]
Baseline = Literal["none", "greedy", "leave_one_out"]
ReferenceWeighting = Literal["clamp", "softmax", "shift", "raw", "constant"]

IGNORED_LABEL = -100
"""Label of positions that no loss counts: padding, and everything after the end token."""


def token_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probability of each label under the logits of its position.

    The backward pass stores only the logits and creates one tensor of their size, the gradient. log_softmax would also
    store its output, and logsumexp with gather would create five tensors. It can be differentiated once.

    Args:
        logits: (..., V), aligned with the labels: (T, V) for T real tokens, or (N, L, V) for padded captions. Half
            precision is computed in float32; that copy is not stored.
        labels: int64 token ids with the shape of the logits without V, (T,) or (N, L); -100 where there is no token.

    Returns:
        Natural logarithms in the labels' shape, 0 where the label is -100.

    Raises:
        ValueError: if the shapes do not match.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match in shape")
    ignored = labels == IGNORED_LABEL
    return _ChosenLogProbs.apply(logits, labels.masked_fill(ignored, 0).unsqueeze(-1)).masked_fill(ignored, 0.0)


class _ChosenLogProbs(torch.autograd.Function):
    """``logit - logsumexp(logits)`` of the chosen tokens; its gradient is ``1[chosen] - softmax(logits)``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, chosen: Tensor) -> Tensor:
        """Map logits (..., V) and token ids (..., 1) to log-probabilities (...)."""
        raised = _at_least_float32(logits)
        log_sum = raised.logsumexp(dim=-1, keepdim=True)
        ctx.save_for_backward(logits, chosen, log_sum)
        return (raised.gather(-1, chosen) - log_sum).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Map the gradient of the result (...) to the gradient of the logits (..., V)."""
        logits, chosen, log_sum = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        found = logits.sub(log_sum).exp_().mul_(-grad).scatter_add_(-1, chosen, grad)
        return found.to(logits.dtype), None


def sequence_log_probs(
    token_log_probs: Tensor, labels: Tensor, normalize: Normalization = "tokens", constant: int | None = None
) -> Tensor:
    """Return the normalised log-probability ``l(c)`` of whole captions. The padded length has no effect.

    Args:
        token_log_probs: (N, L), the output of [`token_log_probs`] for padded captions.
        labels: (N, L) token ids, -100 where there is no token.
        normalize: ``"tokens"`` divides the sum by the number of real tokens (end token included). ``"constant"``
            divides by ``constant``, so that a token has the same weight in short and in long captions.
        constant: the divisor for ``"constant"``, at least 1.

    Returns:
        (N,) log-probabilities; 0 for a caption without a real token.

    Raises:
        ValueError: on an unknown ``normalize``, a missing constant, or shapes that differ.
    """
    _check_choice("normalize", normalize, get_args(Normalization))
    _check_same_shape("token_log_probs", token_log_probs, "labels", labels)
    real = labels != IGNORED_LABEL
    total = token_log_probs.masked_fill(~real, 0.0).sum(dim=-1)
    if normalize == "tokens":
        return total / real.sum(dim=-1).clamp(min=1)
    if constant is None or constant < 1:
        raise ValueError(f"normalize='constant' needs a constant of at least 1, got {constant}")
    return total / constant


def advantages(rewards: Tensor, baseline: Baseline = "none", greedy_rewards: Tensor | None = None) -> Tensor:
    """Subtract a baseline from rewards; the result is detached.

    The contrastive reward is already an advantage and may use ``"none"``, as in the paper. Rewards such as cosine
    similarity and CIDEr-D need a baseline: ``"greedy"`` is self-critical sequence training (arXiv 1612.00563),
    ``"leave_one_out"`` subtracts the mean of the other K - 1 rollouts of the same image.

    Args:
        rewards: (B, K), K rollouts per image.
        baseline: ``"none"``, ``"greedy"`` or ``"leave_one_out"``.
        greedy_rewards: (B,), the reward of each image's greedy caption; required for ``"greedy"`` only.

    Returns:
        (B, K) advantages. For example, leave-one-out turns ``[[1., 2., 6.]]`` into ``[[-3., -1.5, 4.5]]``.

    Raises:
        ValueError: on an unknown baseline, ``"greedy"`` without greedy_rewards, or ``"leave_one_out"`` with K = 1.
    """
    _check_choice("baseline", baseline, get_args(Baseline))
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (images, rollouts), got shape {tuple(rewards.shape)}")
    rewards = rewards.detach()
    if baseline == "none":
        return rewards
    if baseline == "greedy":
        if greedy_rewards is None:
            raise ValueError("baseline='greedy' needs greedy_rewards, the reward of each image's greedy caption")
        _check_same_shape("greedy_rewards", greedy_rewards, "the rewards' first column", rewards[:, 0])
        return rewards - greedy_rewards.detach().unsqueeze(1)
    rollouts = rewards.shape[1]
    if rollouts < 2:
        raise ValueError("baseline='leave_one_out' needs at least 2 rollouts of each image, got 1")
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rollouts - 1)
    return rewards - others


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """``L_RL = - mean(A * l)`` over the rollouts; the advantages get no gradient. From arXiv 2402.13936.

    Args:
        log_probs: (N,) ``l(c)`` of each rollout, with gradient.
        advantages: (N,) of the same rollouts.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: if the shapes differ: broadcasting would hide mixed-up images and rollouts.
    """
    _check_same_shape("log_probs", log_probs, "advantages", advantages)
    return -(advantages.detach() * log_probs).mean()


def reference_weights(rewards: Tensor, policy: ReferenceWeighting) -> Tensor:
    """Return the weights ``w(g)`` of the references in the weighted teacher-forcing loss.

    A negative weight lowers the probability of a person's caption without bound, so you choose how rewards become
    weights:

    - ``"clamp"``: ``max(R, 0)``;
    - ``"softmax"``: ``size * softmax(R)`` over all entries, so that the mean weight is 1;
    - ``"shift"``: ``R - min(R)``: the worst reference gets 0 (a single entry always gets 0);
    - ``"raw"``: ``R``, as in the paper;
    - ``"constant"``: 1, plain teacher forcing.

    ``"softmax"`` and ``"shift"`` compare entries with each other, so pass the rewards of the global batch.

    Args:
        rewards: R(g), of any shape.
        policy: one of the above.

    Returns:
        The weights, of the rewards' shape, detached.

    Raises:
        ValueError: on an unknown policy.
    """
    _check_choice("policy", policy, get_args(ReferenceWeighting))
    rewards = rewards.detach()
    if policy == "clamp":
        return rewards.clamp(min=0.0)
    if policy == "softmax":
        return rewards.flatten().softmax(dim=0).view(rewards.shape) * rewards.numel()
    if policy == "shift":
        return rewards - rewards.min()
    if policy == "constant":
        return torch.ones_like(rewards)
    return rewards


def weighted_teacher_forcing_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """``L_WTF = - mean(w * l)`` over the references; the weights get no gradient. From arXiv 2402.13936.

    Args:
        log_probs: (N,) ``l(g)`` of each reference, with gradient.
        weights: (N,), as [`reference_weights`] gives them.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_same_shape("log_probs", log_probs, "weights", weights)
    return -(weights.detach() * log_probs).mean()


def kl_divergence(logits: Tensor, reference_logits: Tensor, labels: Tensor) -> Tensor:
    """``KL(p || q)`` of the policy from a frozen captioner: exact sum over the vocabulary, mean over real tokens.

    Args:
        logits: (..., V) of the policy p: (T, V) for T real tokens, or (N, L, V) for padded captions.
        reference_logits: of the frozen captioner q, in the same shape; they get no gradient.
        labels: token ids with the shape of the logits without V, (T,) or (N, L); -100 at positions to ignore.

    Returns:
        The divergence in nats, a scalar. It is not negative except for rounding, and 0 if there is no real token.

    Raises:
        ValueError: if the shapes do not match.
    """
    _check_same_shape("logits", logits, "reference_logits", reference_logits)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match in shape")
    log_p = _at_least_float32(logits).log_softmax(dim=-1)
    log_q = _at_least_float32(reference_logits.detach()).log_softmax(dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    real = labels != IGNORED_LABEL
    return divergence.masked_fill(~real, 0.0).sum() / real.sum().clamp(min=1)


def matching_loss(logits: Tensor, image_of: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of captions and images, in which captions of the same image do not compete with each other.

    With L(c, v) the logit of caption c and image v, v_c the image of c, and d the captions of other images than v_c:

        loss = 1/2 mean_c [log sum_v exp L(c, v) - L(c, v_c)]
             + 1/2 mean_c [log(exp L(c, v_c) + sum_d exp L(d, v_c)) - L(c, v_c)]

    With one caption per image it is the loss of CLIP.

    Args:
        logits: (C, V) similarities of captions and images, times the logit scale. Images without captions are
            negatives of all captions.
        image_of: (C,) int64, the column of each caption's image.
        left_out: (C, V) bool, pairs that are not compared, such as a caption and a copy of its image.

    Returns:
        The loss, a scalar.
    """
    lowest = torch.finfo(logits.dtype).min  # with minus infinity, the gradient of a lone image would be NaN
    if left_out is not None:
        logits = logits.masked_fill(left_out, lowest)
    own = logits.gather(1, image_of[:, None]).squeeze(1)
    others = logits.scatter(1, image_of[:, None], lowest).logsumexp(0)
    return (F.cross_entropy(logits, image_of) + F.softplus(others[image_of] - own).mean()) / 2


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_choice(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{argument}={value!r} is unknown; choose one of {', '.join(choices)}")


def _check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} {tuple(tensor.shape)} and {other_name} {tuple(other.shape)} must have the same shape"
        )



def policy_logits(
    logits: Tensor, temperature: float, forbidden: Tensor | None = None, where: Tensor | None = None
) -> Tensor:
    """Turn the captioner's logits into those of the policy: divide by the temperature, mask forbidden tokens.

    For example, logits 0 and ln 9 at temperature 2 give the probabilities 1/4 and 3/4 instead of 1/10 and 9/10.

    Args:
        logits: ``(T, V)``.
        temperature: above 0.
        forbidden: ``(t, V)`` bool, see `forbidden_tokens`.
        where: ``(T,)`` bool, the t rows that ``forbidden`` applies to; by default all.

    Returns:
        ``(T, V)``; the input itself at temperature 1 with nothing forbidden. A forbidden token gets the lowest finite
        value, since minus infinity would make divergences NaN.
    """
    if temperature != 1:
        logits = logits / temperature
    if forbidden is None:
        return logits
    if where is not None:
        forbidden = torch.zeros_like(logits, dtype=torch.bool).masked_scatter_(where[:, None], forbidden)
    return logits.masked_fill(forbidden, torch.finfo(logits.dtype).min)
