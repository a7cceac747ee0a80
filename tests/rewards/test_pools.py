"""What the pools of a step hold; with a trainer around them, see test_appraiser.py."""

from __future__ import annotations

import torch

from hf_distinct.rewards import TextKind
from hf_distinct.rewards.pools import Pools


def entries(first: int, kinds: list[TextKind]) -> dict[str, torch.Tensor]:
    """Texts that are numbered from ``first`` on, and one image."""
    numbers = torch.arange(first, first + len(kinds))
    return {
        "text_embeds": numbers.float()[:, None], "text_ids": numbers, "text_image_ids": numbers % 2,
        "kinds": torch.tensor(kinds), "image_embeds": torch.tensor([[float(first)]]),
        "image_ids": torch.tensor([first]),
    }  # fmt: skip


def test_the_memory_holds_the_last_batches_and_only_the_kinds_that_are_remembered():
    pools = Pools(2, [TextKind.ROLLOUT])
    both = [TextKind.ROLLOUT, TextKind.REFERENCE]
    seen = [pools.extend(entries(first, both)) for first in (0, 10, 20, 30)]
    assert [texts.text_ids.tolist() for texts, _ in seen] == [[0, 1], [10, 11, 0], [20, 21, 0, 10], [30, 31, 10, 20]]
    assert [images.image_ids.tolist() for _, images in seen] == [[0], [10, 0], [20, 0, 10], [30, 10, 20]]
    texts, images = seen[-1]
    assert texts.kinds.tolist() == [0, 1, 3, 3] and texts.embeds.flatten().tolist() == texts.text_ids.tolist()
    assert texts.image_ids.tolist() == [0, 1, 0, 0] and images.embeds.flatten().tolist() == [30.0, 10.0, 20.0]


def test_what_is_only_looked_at_is_not_remembered():
    pools = Pools(2)
    pools.extend(entries(0, [TextKind.REFERENCE]))
    texts, _ = pools.extend(entries(10, [TextKind.ROLLOUT]), remember=False)
    assert texts.text_ids.tolist() == [10, 0] and texts.kinds.tolist() == [TextKind.ROLLOUT, TextKind.MEMORY]
    texts, _ = pools.extend(entries(20, [TextKind.ROLLOUT]))
    assert texts.text_ids.tolist() == [20, 0]


def test_without_a_memory_nothing_stays_and_with_one_its_state_comes_back():
    alone, pools = Pools(), Pools(1)
    for first in (0, 10):
        texts, _ = alone.extend(entries(first, [TextKind.ROLLOUT]))
        pools.extend(entries(first, [TextKind.ROLLOUT]))
        assert texts.text_ids.tolist() == [first] and alone.state_dict() == []
    again = Pools(1)
    again.load_state_dict(pools.state_dict(), torch.device("cpu"))
    texts, images = again.extend(entries(20, [TextKind.ROLLOUT]))
    assert texts.text_ids.tolist() == [20, 10] and images.image_ids.tolist() == [20, 10]
