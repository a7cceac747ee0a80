"""How rewards become advantages, which may not stand together, and the pools of texts and images that they see."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from transformers.utils import logging

from hf_distinct import RLCaptionConfig
from hf_distinct.data import stable_hash
from hf_distinct.rewards import CallableReward, SimilarityReward, TextKind
from hf_distinct.rewards.appraiser import _advantages
from hf_distinct.rewards.resolve import found_rewards
from hf_distinct.training.fit import contrast_problems, reward_problems

R = torch.tensor([[1.0, 2.0, 6.0], [4.0, 0.0, 0.0]])
SCORED = torch.tensor([[True, False, True], [True, False, False]])


def test_advantages_where_no_reward_applies():
    """By hand: image 1 has 1 and 6 with mean 3.5, which stands in for the 2; image 2 has one caption alone."""
    assert _advantages(R, SCORED, "none", None).tolist() == [[1.0, 0.0, 6.0], [4.0, 0.0, 0.0]]
    # less the mean of the other two, 3.5 and 6, or 3.5 and 1
    assert _advantages(R, SCORED, "leave_one_out", None).tolist() == [[-3.75, 0.0, 3.75], [0.0, 0.0, 0.0]]
    greedy = (torch.tensor([2.0, 3.0]), torch.tensor([True, False]))
    assert _advantages(R, SCORED, "greedy", greedy).tolist() == [[-1.0, 0.0, 4.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_where_all_apply_nothing_changes(baseline):
    everywhere = torch.ones_like(SCORED)
    expected = R if baseline == "none" else torch.tensor([[-3.0, -1.5, 4.5], [4.0, -2.0, -2.0]])
    assert torch.equal(_advantages(R, everywhere, baseline, None), expected)


def test_a_reward_that_applies_to_some_captions(make_trainer):
    """It counts where it applies, alone in its mean; the other one counts everywhere."""

    def some(completions, **kwargs):
        return [None if row % 2 else 3.0 for row, _ in enumerate(completions)]

    def never(completions):
        return [None] * len(completions)

    def every(completions):
        return [1.0] * len(completions)

    rewards = [CallableReward(some), CallableReward(never), CallableReward(every)]
    trainer = make_trainer(rewards=rewards, discriminator_weight=0.0, baseline="none")
    inputs = tiny.a_batch(trainer)
    judged = trainer.appraiser.judge(inputs, ["a dog"] * 8, [])
    assert judged.advantages.tolist() == [4.0, 1.0] * 4 and judged.reference_weights.tolist() == [4.0, 1.0, 4.0, 1.0]
    assert judged.figures["reward/some/rollouts"] == 3.0 and judged.figures["reward/some/rollouts_std"] == 0.0
    assert judged.figures["reward/total/rollouts"] == 2.5 and judged.figures["reward/total/rollouts_std"] == 1.5
    assert not any("never" in name for name in judged.figures)
    assert judged.trouble() is None


def test_a_weak_scorer_pushes_no_image_down(make_trainer):
    """Rewards that are called advantages and are all negative: by hand, of -.3 and -.1 one goes up and one down."""

    class Weak:
        name, is_advantage = "weak", True

        def __call__(self, batch):
            values = torch.full((len(batch),), -0.2)
            values[:8] += torch.tensor([-0.1, 0.1] * 4)
            return values

    trainer = make_trainer(rewards=[Weak()], discriminator_weight=0.0)
    judged = trainer.appraiser.judge(tiny.a_batch(trainer), ["a dog"] * 8, [])
    assert judged.advantages.tolist() == pytest.approx([-0.2, 0.2] * 4)
    trainer = make_trainer(rewards=[Weak()], discriminator_weight=0.0, baseline="none")
    judged = trainer.appraiser.judge(tiny.a_batch(trainer), ["a dog"] * 8, [])
    assert judged.advantages.tolist() == pytest.approx([-0.3, -0.1] * 4)


def test_a_caption_that_no_reward_applies_to_teaches_nothing(make_trainer):
    trainer = make_trainer(rewards=[lambda captions: [None, 5.0] * (len(captions) // 2)], baseline="none")
    judged = trainer.appraiser.judge(tiny.a_batch(trainer), ["a dog"] * 8, [])
    assert judged.advantages[::2].tolist() == [0.0] * 4 and (judged.advantages[1::2] > 4).all()


def test_functions_of_trl_train(make_trainer):
    seen = []

    async def later(prompts, completions, completion_ids, trainer_state, log_metric, **kwargs):
        seen.append((trainer_state.global_step, completion_ids, completions))
        log_metric("mean_tokens", sum(map(len, completion_ids)) / len(completion_ids))
        return [float(len(text)) for text in completions]

    trainer = make_trainer(rewards=[later], max_steps=2, max_new_tokens=7)
    trainer.train()
    assert [step for step, *_ in seen] == [0, 1]
    _, ids, texts = seen[0]
    tokenizer = trainer.processing_class
    ended = [row[-1] == tokenizer.eos_token_id for row in ids]
    assert len(texts) == 8 + 4 and all(ended[8:])  # two rollouts and a reference caption of each image
    assert {*ended[:8]} == {True, False}  # some rollouts were cut
    assert all(end or len(row) == 7 for row, end in zip(ids[:8], ended[:8], strict=True))
    assert [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids] == texts
    logged = [log["reward/mean_tokens"] for log in trainer.state.log_history if "reward/mean_tokens" in log]
    assert logged == pytest.approx([sum(map(len, ids)) / len(ids) for _, ids, _ in seen])
    assert all(math.isfinite(loss) for loss in trainer.step_losses)


def test_a_column_that_is_not_there_is_known_at_construction(make_trainer):
    scenes = tiny.scenes().add_column("style", ["short"] * 12)

    def by_style(captions, style):
        return [float(each == "short") for each in style]

    make_trainer(rewards=[by_style], dataset=scenes).train()
    with pytest.raises(ValueError, match="'by_style' needs 'style', which is not a column .*; these are .*image_id"):
        make_trainer(rewards=[by_style])
    with pytest.raises(ValueError, match="reward 'looking' needs 'image'"):
        make_trainer(rewards=[CallableReward(lambda captions, image: [], "looking")])


def test_any_kind_of_column_reaches_a_reward_and_a_hidden_one_is_told(make_trainer, caplog):
    scenes = tiny.scenes().add_column("objects", [[{"box": [row] * (row % 3)}] * (row % 2) for row in range(12)])
    scenes = scenes.add_column("mood", [None, "calm"] * 6).add_column("prompts", ["say it"] * 12)
    seen = []

    def look(completions, objects, mood, prompts):
        seen.append((objects, mood, prompts))
        return [0.0 if each is None else 1.0 for each in mood]

    make_trainer(rewards=[look], dataset=scenes).train()
    objects, mood, prompts = seen[0]
    assert {len(each) for each in objects} == {0, 1} and set(mood) == {None, "calm"} and set(prompts) == {""}
    assert "rewards cannot see the dataset's column 'prompts'" in caplog.text


def test_rewards_that_cannot_stand_together():
    same = [CallableReward(lambda captions: [], "own"), SimilarityReward(), CallableReward(lambda captions: [], "own")]
    told = list(reward_problems(same, ["obj"]))
    assert len(told) == 1 and told[0].startswith("2 rewards have the name 'own'")
    for name in ("total", "discriminator"):
        (problem,) = reward_problems([CallableReward(lambda captions: [], name)], [])
        assert f"a reward cannot be called {name!r}" in problem
    assert not list(reward_problems([SimilarityReward()], []))


def test_one_reward_may_stand_without_a_list():
    def brevity(captions):
        return [1.0] * len(captions)

    (found,) = found_rewards(brevity)
    assert isinstance(found, CallableReward) and found.name == "brevity"
    assert found_rewards("cider") == ["cider"]
    with pytest.raises(ValueError, match="rewards is empty"):
        found_rewards([])


def test_rewards_are_compared_with_their_weights_and_their_pools():
    assert list(reward_problems(["cider"], [], [1.0])) == []
    assert list(reward_problems(["cider", "cider"], [], [1.0])) == [
        "1 reward_weights for 2 rewards: set one weight per reward.",
        "2 rewards have the name 'cider', so the log could not distinguish them: name them with "
        "CallableReward(function, name).",
    ]
    alone = RLCaptionConfig(per_device_train_batch_size=1, use_cpu=True)
    (problem,) = contrast_problems(["cider", "contrastive_t2i"], alone)
    assert problem.startswith("A contrastive reward needs other images to compare with")
    assert list(contrast_problems(["cider"], alone)) == []
    assert list(contrast_problems(["contrastive"], RLCaptionConfig(memory_batches=1, use_cpu=True))) == []


def test_tokens_of_a_persons_long_caption_need_no_warning(make_trainer, caplog):
    seen = []
    trainer = make_trainer(rewards=[lambda completion_ids: seen.extend(completion_ids) or [1.0] * len(completion_ids)])
    inputs = tiny.a_batch(trainer)
    logging.enable_propagation()
    try:
        trainer.appraiser.judge(inputs, ["a red dog " * 10] * 8, [])
    finally:
        logging.disable_propagation()
    assert len(seen[0]) == 31 and seen[0][-1] == trainer.processing_class.eos_token_id
    assert "longer than the specified maximum" not in caplog.text


def test_captions_that_the_scorer_does_not_read_to_their_end_are_counted(make_trainer):
    trainer = make_trainer(num_rollouts=3)
    inputs = tiny.a_batch(trainer)
    assert trainer.scorer.context_length == 14  # start, twelve words, end
    captions = ["a " * words for words in (1, 12, 13, 13, 20, 30, 7, 7, 7, 7, 7, 7)]
    assert trainer.appraiser.judge(inputs, captions, []).figures["cut_by_scorer"] == pytest.approx(4 / 12)


# ------------------------------------------------------------------------------------------ pools and memory


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
