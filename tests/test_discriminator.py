"""The discriminator: forward and update by hand, its state, and two real processes.

Run as a script, this file is one of the processes of `test_two_processes_equal_one`.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch

from hf_distinct.discriminator import Discriminator, DiscriminatorTrainer

DIM = 4


def embeddings(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, DIM, generator=generator, dtype=torch.float64), dim=-1)


def whole_batch() -> list[torch.Tensor]:
    """Images and texts of 6 rollouts, then of 4 references."""
    return [embeddings(rows, seed) for seed, rows in enumerate((6, 6, 4, 4))]


def new_trainer(seed: int = 0) -> DiscriminatorTrainer:
    torch.manual_seed(seed)
    return DiscriminatorTrainer(Discriminator(DIM).double())


def weights(trainer: DiscriminatorTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.discriminator.parameters()]


def sparse_network() -> Discriminator:
    """A network that can be worked out by hand: one path through it, the rest 0.

    Inputs (v; t) with dim 1. hidden 1 = relu(v - t), hidden 2 = relu(2 * hidden 1), logits = (hidden 2, 0.5).
    """
    network = Discriminator(1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.layers[0].weight[0] = torch.tensor([1.0, -1.0])
        network.layers[2].weight[0, 0] = 2.0
        network.layers[4].weight[0, 0] = 1.0
        network.layers[4].bias[1] = 0.5
    return network


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_layers():
    shapes = [tuple(parameter.shape) for parameter in Discriminator(DIM).parameters()]
    assert shapes == [(512, 2 * DIM), (512,), (256, 512), (256,), (2, 256), (2,)]


def test_score_by_hand():
    # v - t = 1, -1, 0.25: hidden 2 = 2, 0, 0.5: logits (2, .5), (0, .5), (.5, .5)
    network = sparse_network()
    score = network.score(column(1.0, 0.0, 0.5), column(0.0, 1.0, 0.25))
    expected = [1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-0.5)), 0.5]
    assert score.tolist() == pytest.approx(expected)
    assert not score.requires_grad


def test_update_by_hand():
    # Rollout: v - t = 1, logits (2, .5), class 0. Reference: v - t = -1, logits (0, .5), class 1.
    network = sparse_network()
    trainer = DiscriminatorTrainer(network, lr=0.01)
    result = trainer.update(column(1.0), column(0.0), column(0.0), column(1.0))
    p_rollout, p_reference = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(-0.5))  # of the right class
    assert result["loss"].item() == pytest.approx(-(math.log(p_rollout) + math.log(p_reference)) / 2)
    assert result["accuracy"].item() == 1.0
    assert not result["loss"].requires_grad
    # d loss / d bias of logit 1 = ((1 - p_rollout) - (1 - p_reference)) / 2; logit 0 the opposite
    gradient = ((1 - p_rollout) - (1 - p_reference)) / 2
    assert network.layers[4].bias.grad.tolist() == pytest.approx([-gradient, gradient])
    # d loss / d weight of logit 0 from hidden 2 (2 for the rollout, 0 for the reference) = -(1 - p_rollout) * 2 / 2
    assert network.layers[4].weight.grad[0, 0].item() == pytest.approx(-(1 - p_rollout))
    # Adam's first step is lr * sign of the gradient (but for eps = 1e-8)
    assert network.layers[4].bias.tolist() == pytest.approx([0 - 0.01, 0.5 + 0.01], abs=1e-7)
    assert network.layers[4].weight[0, 0].item() == pytest.approx(1.0 + 0.01, abs=1e-7)
    assert trainer.steps == 1


def test_accuracy_counts_both_classes():
    # rollouts: logits (2, .5) right, (0, .5) wrong, (0, .5) wrong; references: (0, .5) right, (2, .5) wrong: 2 of 5
    result = DiscriminatorTrainer(sparse_network()).update(
        column(1.0, 0.0, 0.0), column(0.0, 0.0, 1.0), column(0.0, 1.0), column(1.0, 0.0)
    )
    assert result["accuracy"].item() == pytest.approx(2 / 5)


def test_update_is_adam_on_the_mean_cross_entropy():
    """Three updates against the same written out with autograd and Adam's formulas."""
    trainer = new_trainer()
    images, texts = torch.cat([whole_batch()[0], whole_batch()[2]]), torch.cat([whole_batch()[1], whole_batch()[3]])
    parameters = [parameter.requires_grad_() for parameter in weights(trainer)]
    first, second = [[torch.zeros_like(parameter) for parameter in parameters] for _ in range(2)]
    for step in range(1, 4):
        w1, b1, w2, b2, w3, b3 = parameters
        hidden = (torch.cat([images, texts], dim=1) @ w1.T + b1).clamp(min=0)
        logits = (hidden @ w2.T + b2).clamp(min=0) @ w3.T + b3
        log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
        loss = -(log_p[:6, 0].sum() + log_p[6:, 1].sum()) / 10
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient**2)
                parameter -= 7e-5 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        with torch.no_grad():  # the trainer may be in the middle of a reward
            result = trainer.update(*whole_batch())
        assert result["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    for mine, theirs in zip(parameters, weights(trainer), strict=True):
        torch.testing.assert_close(theirs, mine.detach(), atol=1e-12, rtol=1e-9)


def test_inputs_are_detached():
    batch = [part.requires_grad_() for part in whole_batch()]
    new_trainer().update(*batch)
    assert all(part.grad is None for part in batch)


def test_it_learns_what_can_be_told_apart():
    torch.manual_seed(0)
    trainer = DiscriminatorTrainer(Discriminator(DIM), lr=1e-3)
    images, shift = torch.randn(64, DIM), torch.tensor([2.0, 0, 0, 0])
    for _ in range(60):
        result = trainer.update(images, torch.randn(64, DIM) - shift, images, torch.randn(64, DIM) + shift)
    assert result["accuracy"] > 0.9
    person = trainer.discriminator.score(images, torch.randn(64, DIM) + shift)
    rollout = trainer.discriminator.score(images, torch.randn(64, DIM) - shift)
    assert person.mean() > 0.7 > 0.3 > rollout.mean()


def test_autocast_and_half_precision_inputs_make_no_difference():
    trainer = DiscriminatorTrainer(Discriminator(DIM))
    images, texts = embeddings(5, 0).bfloat16(), embeddings(5, 1).bfloat16()
    plain = trainer.discriminator.score(images.float(), texts.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = trainer.discriminator.score(images, texts)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def test_state_survives_a_file(tmp_path):
    """Two updates, a checkpoint, two more: a second trainer that takes up the file does the same two, to the bit."""
    trainer = new_trainer()
    for _ in range(2):
        trainer.update(*whole_batch())
    torch.save(trainer.state_dict(), tmp_path / "discriminator.pt")
    resumed = new_trainer(seed=1)
    resumed.load_state_dict(torch.load(tmp_path / "discriminator.pt", weights_only=True))
    assert resumed.steps == 2
    for _ in range(2):
        loss, again = trainer.update(*whole_batch())["loss"], resumed.update(*whole_batch())["loss"]
        assert torch.equal(loss, again)
    assert resumed.steps == 4
    assert all(map(torch.equal, weights(trainer), weights(resumed)))


def test_synchronize_alone_changes_nothing():
    trainer = new_trainer()
    before = weights(trainer)
    trainer.synchronize()
    assert all(map(torch.equal, before, weights(trainer)))


# --- two processes -----------------------------------------------------------------------------------------------


def one_process(rank: int, folder: str, rollouts: list[int], references: list[int]) -> None:
    """Start from other weights than process 0, take them over, make three updates on a part of the batch."""
    torch.distributed.init_process_group("gloo")
    trainer = new_trainer(seed=rank)
    trainer.synchronize()
    images, texts, reference_images, reference_texts = whole_batch()
    part = [images[rollouts], texts[rollouts], reference_images[references], reference_texts[references]]
    results = [trainer.update(*part) for _ in range(3)]
    torch.save({"weights": weights(trainer), "results": results}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "rollouts", [([0, 1, 2], [3, 4, 5]), ([0], [1, 2, 3, 4, 5])], ids=["equal halves", "unequal parts"]
)
def test_two_processes_equal_one(tmp_path, run_processes, rollouts):
    """Each with a part of the batch, they end with the weights of one process with the whole."""
    parts = zip(rollouts, ([0, 1], [2, 3]), strict=True)
    run_processes(__file__, *([tmp_path, *part] for part in parts))

    alone = new_trainer()
    results = [alone.update(*whole_batch()) for _ in range(3)]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["weights"], weights(alone), atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(found["results"], results)


if __name__ == "__main__":
    import ast

    one_process(int(sys.argv[1]), sys.argv[2], ast.literal_eval(sys.argv[3]), ast.literal_eval(sys.argv[4]))
