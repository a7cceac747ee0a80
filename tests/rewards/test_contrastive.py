"""The contrastive reward against numbers worked out by hand and a slow version in plain Python.

The world of conftest.py: exp(L) = 32 ** cosine, that is 32, 16, 8, 1 for the cosines 1, 0.8, 0.6, 0.

    cosine   v_1   v_2            exp(L)   v_1   v_2
    c_1      1     0              c_1      32    1
    g_1      0.6   0.8            g_1      8     16
    c_2      0     1              c_2      1     32
    g_2      0.8   0.6            g_2      16    8
"""

from __future__ import annotations

import math
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_distinct.rewards import (
    ContrastiveReward,
    ImagePool,
    RewardBatch,
    TextKind,
    TextPool,
    contrastive,
    contrastive_log_odds,
)

SCALE = 5 * log(2)
V1, V2 = (1.0, 0.0), (0.0, 1.0)
C1, G1, C2, G2 = (1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (0.8, 0.6)
ROLLOUT, REFERENCE, GREEDY, MEMORY = TextKind
POOL = ((C1, 11, 1, ROLLOUT), (G1, 12, 1, REFERENCE), (C2, 21, 2, ROLLOUT), (G2, 22, 2, REFERENCE))


def check(reward: torch.Tensor, log_odds: list[float], scale: float = SCALE) -> None:
    """The reward is tau times the log-odds."""
    torch.testing.assert_close(reward, torch.tensor(log_odds, dtype=torch.float64) / scale, atol=1e-12, rtol=1e-12)


# --- the worked example ------------------------------------------------------------------------------------------


def test_rollouts_by_hand(make_batch):
    # c_1 at v_1: 32 against g_1 8, c_2 1, g_2 16; c_1: v_1 32 against v_2 1. The world is symmetric in 1 and 2.
    batch = make_batch()
    check(ContrastiveReward("i2t")(batch), [log(32 / 25)] * 2)
    check(ContrastiveReward("t2i")(batch), [log(32 / 1)] * 2)
    check(ContrastiveReward()(batch), [(log(32 / 25) + log(32)) / 2] * 2)


def test_references_get_the_same_reward(make_batch):
    # g_1 at v_1: 8 against c_1 32, c_2 1, g_2 16; g_1: v_1 8 against v_2 16
    batch = make_batch(texts=((G1, 12, 1), (G2, 22, 2)))
    check(ContrastiveReward("i2t")(batch), [log(8 / 49)] * 2)
    check(ContrastiveReward("t2i")(batch), [log(8 / 16)] * 2)
    check(ContrastiveReward()(batch), [(log(8 / 49) + log(1 / 2)) / 2] * 2)


def test_mined_images_are_negatives(make_batch):
    # a neighbour at (0.8, 0.6): c_1 has 16 with it, c_2 has 8
    batch = make_batch(image_pool=((V1, 1), (V2, 2), ((0.8, 0.6), 3)))
    check(ContrastiveReward("t2i")(batch), [log(32 / 17), log(32 / 9)])
    check(ContrastiveReward("i2t")(batch), [log(32 / 25)] * 2)


def test_one_row_batch(make_batch):
    # alone with its reference: 32 against 8; no other image, so that direction says nothing
    alone = {"texts": ((C1, 11, 1),), "images": (V1,), "text_pool": POOL[:2], "image_pool": ((V1, 1),)}
    check(ContrastiveReward("i2t")(make_batch(**alone)), [log(4)])
    check(ContrastiveReward("t2i")(make_batch(**alone)), [0.0])
    check(ContrastiveReward()(make_batch(**alone)), [log(4) / 2])
    nothing = alone | {"text_pool": POOL[:1]}
    check(ContrastiveReward()(make_batch(**nothing)), [0.0])
    check(ContrastiveReward()(make_batch(**(alone | {"text_pool": (), "image_pool": ()}))), [0.0])


# --- who is not compared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TextKind))
@pytest.mark.parametrize("image_id", [1, 2])
def test_the_same_string_is_no_baseline(make_batch, kind, image_id):
    # c_1 drawn again, or written by a person, or greedy, even for another image: the same value as without it
    batch = make_batch(text_pool=(*POOL, (C1, 11, image_id, kind)))
    # ... but for c_2 it is a text like any other: 32 against c_1 1, g_1 16, g_2 8, c_1 again 1
    check(ContrastiveReward("i2t")(batch), [log(32 / 25), log(32 / 26)])


def test_an_equal_embedding_of_another_string_is_a_baseline(make_batch):
    batch = make_batch(text_pool=(*POOL, (C1, 99, 1, ROLLOUT)))
    check(ContrastiveReward("i2t")(batch)[:1], [log(32 / 57)])


def test_the_same_image_again_is_no_negative(make_batch):
    # rows of image 1 twice, once more as somebody's neighbour under its id, even with other pixels
    batch = make_batch(image_pool=((V1, 1), (V1, 1), (V2, 2), ((0.8, 0.6), 1)))
    # for c_2 they all count: 32 against 1, 1, 8
    check(ContrastiveReward("t2i")(batch), [log(32 / 1), log(32 / 10)])


# --- switches ----------------------------------------------------------------------------------------------------

# c_1 at v_1 (32) against, of image 1: a second rollout 8, a reference 16, a greedy caption 4;
# of image 2: a rollout 1, a reference 2, a greedy caption 64; remembered of image 1: 128, of image 2: 256.
# Cosines log2(x) / 5, the second coordinate makes no difference to v_1.
EVERYONE = tuple(
    ((math.log2(exp) / 5, 0.0), text_id, image_id, kind)
    for exp, text_id, image_id, kind in [
        (32, 11, 1, ROLLOUT),
        (8, 12, 1, ROLLOUT),
        (16, 13, 1, REFERENCE),
        (4, 14, 1, GREEDY),
        (1, 21, 2, ROLLOUT),
        (2, 22, 2, REFERENCE),
        (64, 23, 2, GREEDY),
        (128, 31, 1, MEMORY),
        (256, 32, 2, MEMORY),
    ]
)
ALL = 8 + 16 + 4 + 1 + 2 + 64 + 128 + 256


@pytest.mark.parametrize(
    ("switched_off", "total"),
    [
        ((), ALL),
        (("use_references",), ALL - 16 - 2),
        (("use_greedy",), ALL - 4 - 64),
        (("use_own_rollouts",), ALL - 8 - 128),
        (("use_other_captions",), 8 + 16 + 4 + 128),
        (("use_references", "use_greedy"), 8 + 1 + 128 + 256),
        (("use_other_captions", "use_own_rollouts"), 16 + 4),
        (("use_other_captions", "use_references", "use_greedy"), 8 + 128),
    ],
)
def test_switches(make_batch, switched_off, total):
    batch = make_batch(texts=((C1, 11, 1),), images=(V1,), text_pool=EVERYONE)
    reward = ContrastiveReward("i2t", **dict.fromkeys(switched_off, False))
    check(reward(batch), [log(32 / total)])


def test_switched_off_entirely_is_zero(make_batch):
    reward = ContrastiveReward(
        "i2t", use_references=False, use_greedy=False, use_own_rollouts=False, use_other_captions=False
    )
    check(reward(make_batch()), [0.0, 0.0])


# --- scale, clamp, precision -------------------------------------------------------------------------------------


def test_clamp_is_per_direction(make_batch):
    # s = 100: i2t log-odds of c_1: 100 - log(e^60 + e^0 + e^80) = 20 -> 16; t2i: 100 - 0 -> 16
    batch = make_batch(logit_scale=100.0)
    check(ContrastiveReward()(batch), [16.0, 16.0], scale=100.0)
    # with bounds 18 and infinity: 18, 18 and 20, 100 (e^-20 beside 1 is seen in float64)
    check(ContrastiveReward(clamp=18.0)(batch), [18.0, 18.0], scale=100.0)
    i2t = 100 - (80 + math.log1p(math.exp(-20) + math.exp(-80)))
    check(ContrastiveReward(clamp=math.inf)(batch), [(i2t + 100) / 2] * 2, scale=100.0)


def test_one_clamped_direction_leaves_the_other(make_batch):
    # references at s = 100, i2t: 60 - log(e^100 + e^0 + e^80) = -40 - e^-20; t2i: 60 - 80 = -20: no clamp from below
    references = make_batch(texts=((G1, 12, 1), (G2, 22, 2)), logit_scale=100.0)
    i2t = -40 - math.log1p(math.exp(-20) + math.exp(-100))
    check(ContrastiveReward()(references), [(i2t - 20) / 2] * 2, scale=100.0)
    # c_1 against g_1 alone is 40, clamped to 16, and against a near-duplicate image with cosine 0.99: 1
    batch = make_batch(
        texts=((C1, 11, 1),), images=(V1,), text_pool=POOL[:2], image_pool=(((0.99, 0.0), 5),), logit_scale=100.0
    )
    check(ContrastiveReward()(batch), [(16 + 1) / 2], scale=100.0)


def test_scale_100_does_not_cancel_in_float32():
    # exp(100) is 2.7e43, over float32's range; in float64 exp(100) + exp(50) - exp(100) is 0: only a mask gives 50
    logits = torch.tensor([[100.0, 50.0], [100.0, -100.0]])
    mask = torch.tensor([[False, True], [False, True]])
    assert contrastive_log_odds(torch.tensor([100.0, 100.0]), logits, mask).tolist() == [50.0, 200.0]


def test_log_odds_of_rows_and_pools_that_hold_nothing():
    mask = torch.tensor([[False, False], [True, False]])
    result = contrastive_log_odds(torch.tensor([3.0, 3.0]), torch.tensor([[1.0, 2.0], [1.0, 2.0]]), mask)
    assert result.tolist() == [0.0, 2.0]
    assert contrastive_log_odds(torch.ones(2), torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool)).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_is_at_least_float32(make_batch, dtype):
    batch = make_batch(logit_scale=100.0, image_pool=((V1, 1), (V2, 2), ((0.99, 0.1), 3)))
    for owner in (batch, batch.text_pool, batch.image_pool):
        for name, value in vars(owner).items():
            if name.endswith("embeds") or name == "embeds":
                setattr(owner, name, value.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # must make no difference
        result = ContrastiveReward(clamp=math.inf)(batch)
    assert result.dtype == torch.float32
    for owner in (batch, batch.text_pool, batch.image_pool):
        for name, value in vars(owner).items():
            if name.endswith("embeds") or name == "embeds":
                setattr(owner, name, value.double())
    torch.testing.assert_close(result.double(), ContrastiveReward(clamp=math.inf)(batch), atol=1e-6, rtol=1e-5)


def test_no_gradient(make_batch):
    batch = make_batch()
    batch.text_embeds.requires_grad_()
    assert not ContrastiveReward()(batch).requires_grad


def test_names_and_errors():
    assert [ContrastiveReward(d).name for d in ("both", "i2t", "t2i")] == [
        "contrastive",
        "contrastive_i2t",
        "contrastive_t2i",
    ]
    assert ContrastiveReward().is_advantage
    with pytest.raises(ValueError, match="choose one of both, i2t, t2i"):
        ContrastiveReward("t2t")
    for clamp in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="clamp must be positive"):
            ContrastiveReward(clamp=clamp)


# --- blocks ------------------------------------------------------------------------------------------------------


def a_large_batch(captions: int = 60, texts: int = 500, images: int = 300, dim: int = 64) -> RewardBatch:
    """Random embeddings; every caption and its image are in the pools too."""
    generator = torch.Generator().manual_seed(0)

    def embeds(count: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=-1)

    text_pool, image_pool = embeds(texts), embeds(images)
    ids = torch.arange(captions)
    image_ids = ids // 2
    pool_ids = torch.randint(images, (texts,), generator=generator)
    pool_ids[:captions] = image_ids
    kinds = torch.randint(len(TextKind), (texts,), generator=generator)
    return RewardBatch(
        captions=[""] * captions, references=[[]] * captions, text_embeds=text_pool[:captions],
        image_embeds=image_pool[image_ids], text_ids=ids, image_ids=image_ids,
        text_pool=TextPool(text_pool, torch.arange(texts), pool_ids, kinds),
        image_pool=ImagePool(image_pool, torch.arange(images)), logit_scale=100.0,
    )  # fmt: skip


@pytest.mark.parametrize("block", [1, 4, 5, 8, 11])
def test_by_hand_in_blocks(make_batch, monkeypatch, block):
    # pools of 4 texts and 2 images: one row at a time, or two of two, for either pool
    monkeypatch.setattr(contrastive, "BLOCK", block)
    references = make_batch(texts=((G1, 12, 1), (G2, 22, 2), (C1, 11, 1)), images=(V1, V2, V1))
    check(ContrastiveReward("i2t")(references), [log(8 / 49), log(8 / 49), log(32 / 25)])
    check(ContrastiveReward("t2i")(references), [log(8 / 16), log(8 / 16), log(32)])
    switched_off = ContrastiveReward("i2t", use_references=False, use_own_rollouts=False)
    check(switched_off(references), [log(8 / 1), log(8 / 1), log(32)])
    assert ContrastiveReward()(make_batch(texts=(), images=())).shape == (0,)


def test_a_batch_that_fits_is_one_block_to_the_bit():
    batch = a_large_batch()
    positives = 100 * (batch.text_embeds * batch.image_embeds).sum(dim=-1)
    i2t = 100 * batch.image_embeds @ batch.text_pool.embeds.T
    t2i = 100 * batch.text_embeds @ batch.image_pool.embeds.T
    reward = ContrastiveReward()
    odds = [
        contrastive_log_odds(positives, i2t, reward.text_mask(batch)),
        contrastive_log_odds(positives, t2i, reward.image_mask(batch)),
    ]
    assert i2t.numel() <= contrastive.BLOCK
    assert torch.equal(reward(batch), torch.stack(odds).clamp(max=16).mean(dim=0) / 100)


@pytest.mark.parametrize("block", [1, 500, 1_700, 7_000, 29_999])
def test_blocks_differ_by_rounding_only(monkeypatch, block):
    batch, exact = a_large_batch(), a_large_batch()
    exact.text_embeds, exact.image_embeds = exact.text_embeds.double(), exact.image_embeds.double()
    for pool in (exact.text_pool, exact.image_pool):
        pool.embeds = pool.embeds.double()
    reward = ContrastiveReward(clamp=math.inf)
    whole, wanted = reward(batch), reward(exact)
    monkeypatch.setattr(contrastive, "BLOCK", block)
    # log-odds of up to 100 in float32 are known to 1e-5, rewards to a hundredth of that
    torch.testing.assert_close(reward(batch), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(reward(batch).double(), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(reward(exact), wanted, atol=1e-15, rtol=1e-13)


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("off", [{}, {"use_own_rollouts": False, "use_other_captions": False}])
def test_no_tensor_is_larger_than_a_block(monkeypatch, off):
    batch, reward = a_large_batch(dim=2), ContrastiveReward(**off)
    with Largest() as whole:
        reward(batch)
    assert whole.elements == 60 * 500
    monkeypatch.setattr(contrastive, "BLOCK", 2_000)
    with Largest() as blocks:
        reward(batch)
    assert blocks.elements == 2_000


# --- against plain Python ----------------------------------------------------------------------------------------


def slow_log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def slow_reward(caption, image, text_pool, image_pool, scale, direction, clamp, off) -> float:
    embed, text_id, image_id = caption

    def similarity(one, other):
        return scale * (one[0] * other[0] + one[1] * other[1])

    baselines = []
    for other, other_text, other_image, kind in text_pool:
        if other_text == text_id:
            continue
        if kind == REFERENCE and "use_references" in off or kind == GREEDY and "use_greedy" in off:
            continue
        if kind in (ROLLOUT, MEMORY) and other_image == image_id and "use_own_rollouts" in off:
            continue
        if other_image != image_id and "use_other_captions" in off:
            continue
        baselines.append(similarity(other, image))
    negatives = [similarity(embed, other) for other, other_image in image_pool if other_image != image_id]
    value = similarity(embed, image)
    i2t = min(value - slow_log_sum_exp(baselines), clamp) if baselines else 0.0
    t2i = min(value - slow_log_sum_exp(negatives), clamp) if negatives else 0.0
    return {"i2t": i2t, "t2i": t2i, "both": (i2t + t2i) / 2}[direction] / scale


unit = st.floats(0, 2 * math.pi).map(lambda angle: (math.cos(angle), math.sin(angle)))
few = st.integers(1, 4)  # so few ids that duplicates are common


@settings(max_examples=200, deadline=None)
@given(
    captions=st.lists(st.tuples(unit, few, few), min_size=1, max_size=4),
    text_pool=st.lists(st.tuples(unit, few, few, st.sampled_from(TextKind)), max_size=8),
    image_pool=st.lists(st.tuples(unit, few), max_size=6),
    scale=st.sampled_from([1.0, 27.5, 100.0]),
    direction=st.sampled_from(["both", "i2t", "t2i"]),
    clamp=st.sampled_from([16.0, 2.0, math.inf]),
    off=st.sets(st.sampled_from(["use_references", "use_greedy", "use_own_rollouts", "use_other_captions"])),
    data=st.data(),
)
def test_against_plain_python(make_batch, captions, text_pool, image_pool, scale, direction, clamp, off, data):
    images = data.draw(st.lists(unit, min_size=len(captions), max_size=len(captions)))
    batch = make_batch(texts=captions, images=images, text_pool=text_pool, image_pool=image_pool, logit_scale=scale)
    result = ContrastiveReward(direction, clamp, **dict.fromkeys(off, False))(batch)
    expected = [
        slow_reward(caption, image, text_pool, image_pool, scale, direction, clamp, off)
        for caption, image in zip(captions, images, strict=True)
    ]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=1e-10)
