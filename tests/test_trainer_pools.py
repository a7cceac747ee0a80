"""The pools of texts and images that the rewards of a batch see, and the memory of earlier batches."""

from __future__ import annotations

import pytest
import tiny
import torch

from hf_distinct.data import stable_hash
from hf_distinct.rewards import TextKind


def pools_of(trainer, steps=1):
    """The pools that the rewards of the last of some steps saw, through a reward that looks."""
    seen = []

    class Looking:
        name, is_advantage = "looking", True

        def __call__(self, batch):
            seen.append(batch)
            return torch.zeros(len(batch))

    trainer.appraiser.rewards.append(Looking())
    trainer.appraiser.reward_weights = [*trainer.appraiser.reward_weights, 1.0]
    for _ in range(steps):
        trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
    return seen


def kinds(batch):
    return torch.bincount(batch.text_pool.kinds, minlength=4).tolist()


def test_pools_hold_the_batch(make_trainer):
    """4 images with 2 rollouts, 3 references and 1 greedy caption each, and 2 neighbours of each image."""
    (batch,) = pools_of(make_trainer(references_per_image=3, pool_greedy=True, pool_neighbours=2))
    assert kinds(batch) == [8, 12, 4, 0]
    assert len(batch) == 24 and len(batch.image_pool.embeds) == 4 + 8
    dataset = tiny.scenes()
    ids = [stable_hash(image_id) for image_id in dataset["image_id"]]
    assert batch.image_pool.image_ids[:4].tolist() == ids[:4]
    assert batch.text_pool.image_ids.tolist() == [i for n in (2, 3, 1) for i in ids[:4] for _ in range(n)]
    assert batch.text_pool.text_ids.tolist() == [stable_hash(text) for text in batch.captions]
    assert set(batch.image_pool.image_ids.tolist()) <= set(ids)
    assert batch.references[0] == dataset[0]["captions"]


def test_greedy_captions_are_written_only_where_they_are_needed(make_trainer):
    assert kinds(pools_of(make_trainer())[0]) == [8, 4, 0, 0]
    assert kinds(pools_of(make_trainer(reward=["similarity"], pool_greedy=True))[0]) == [8, 4, 0, 0]
    assert kinds(pools_of(make_trainer(reward=["similarity"], baseline="greedy"))[0]) == [8, 4, 4, 0]


@pytest.mark.parametrize(
    ("settings", "remembered"),
    [
        ({}, 8 + 4),  # rollouts and references
        ({"pool_references": False}, 8),
        ({"pool_greedy": True}, 8 + 4 + 4),
        ({"baseline": "greedy"}, 8 + 4),  # greedy captions are written, for the baseline alone
    ],
    ids=str,
)
def test_memory_keeps_the_last_batches_without_the_kinds_switched_off(make_trainer, settings, remembered):
    trainer = make_trainer(memory_batches=2, pool_neighbours=1, **settings)
    batches = pools_of(trainer, steps=4)
    assert [kinds(batch)[TextKind.MEMORY] for batch in batches] == [0, remembered, 2 * remembered, 2 * remembered]
    assert [len(batch.image_pool.embeds) for batch in batches] == [8, 16, 24, 24]
    first, second = batches[0].text_pool, batches[1].text_pool
    old = second.kinds == TextKind.MEMORY
    wanted = torch.zeros_like(first.kinds, dtype=torch.bool)
    for kind, on in (
        (TextKind.ROLLOUT, True),
        (TextKind.REFERENCE, trainer.args.pool_references),
        (TextKind.GREEDY, trainer.args.pool_greedy),
    ):
        wanted |= (first.kinds == kind) & on
    for name in ("embeds", "text_ids", "image_ids"):
        assert torch.equal(getattr(second, name)[old], getattr(first, name)[wanted])
