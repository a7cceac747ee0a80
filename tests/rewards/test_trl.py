"""The rewards as TRL calls them: with the numbers of our trainer, in one process, in two, and in GRPOTrainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vlm
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerState
from trl import GRPOConfig, GRPOTrainer

from hf_distinct import ClipScorer
from hf_distinct.rewards import ContrastiveReward
from hf_distinct.rewards.trl import DistinctivenessReward, caption_of

pytestmark = pytest.mark.both_ends
# Two of each of four images. The same text twice of an image, the same text of two images, and one of a person's.
OF_A_PERSON = tiny.scenes()[3]["captions"][0]
TEXTS = ["a red dog", "a red dog", "a cat", "small hat", "a cat", "a blue bus on the right", "house", OF_A_PERSON]


def pairs() -> Dataset:
    """The scenes with two reference captions each."""
    scenes = tiny.scenes()
    captions = [row[:2] for row in scenes["captions"]]
    return scenes.remove_columns("captions").add_column("captions", captions)


def as_columns(rows: list[int]) -> dict[str, list[Any]]:
    """Rows of the scenes as TRL hands their columns over, twice each."""
    scenes = pairs()
    return {name: [scenes[row][name] for row in rows for _ in range(2)] for name in ("image", "captions", "image_id")}


def as_chat(texts: list[str]) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": f" {text}\n"}] for text in texts]


@pytest.fixture
def scorer(tiny_models: Path) -> ClipScorer:
    return ClipScorer(tiny_models / "scorer")


# ------------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize(
    ("settings", "reward"),
    [
        ({}, "contrastive"),
        ({"reward": ["contrastive_t2i"], "reward_clamp": 1.0}, ContrastiveReward("t2i", clamp=1.0)),
        ({"pool_references": False, "pool_own_rollouts": False},
         ContrastiveReward(use_references=False, use_own_rollouts=False)),
        ({"reward": ["similarity"]}, "similarity"),
    ],
    ids=["contrastive", "one direction", "switches", "similarity"],
)  # fmt: skip
def test_the_numbers_are_those_of_our_trainer(make_trainer, scorer, settings, reward):
    trainer = make_trainer(
        dataset=pairs(), references_per_image=2, memory_batches=2, discriminator_weight=0.3, **settings
    )
    ours = DistinctivenessReward(scorer, reward=reward, memory_batches=2, discriminator_weight=0.3)
    ours.discriminator.load_state_dict(trainer.discriminator.state_dict())
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 4, 8, 3]):
        inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[row] for row in rows]))
        judged = trainer.appraiser.judge(inputs, TEXTS, [])
        logged: dict[str, float] = {}
        found = ours(
            completions=as_chat(TEXTS), prompts=[""] * 8, completion_ids=[[1]] * 8, log_metric=logged.__setitem__,
            **as_columns(rows),
        )  # fmt: skip
        assert found == pytest.approx(judged.rewards["total"][:8].tolist(), abs=1e-6)
        names = ("cut_by_scorer", "discriminator/loss", "discriminator/accuracy")
        assert logged == pytest.approx({name: judged.figures[name].item() for name in names}, abs=1e-6)
    assert len(ours.pools.memory) == 2
    weights = ours.discriminator.discriminator.state_dict()
    torch.testing.assert_close(weights, trainer.discriminator.discriminator.state_dict(), rtol=0, atol=1e-5)


def one_of_two(rank: int, scorer: str, folder: str) -> None:
    """Reward one completion of each image, where the other process has the other one."""
    torch.manual_seed(rank)  # the discriminators differ at first
    reward = DistinctivenessReward(scorer, memory_batches=1, discriminator_weight=0.3)
    assert PartialState(cpu=True).num_processes == 2  # as the trainer's arguments make it
    if rank == 0:
        torch.save(reward.discriminator.state_dict(), f"{folder}/start.pt")
    found = []
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7]):
        columns = {name: values[rank::2] for name, values in as_columns(rows).items()}
        found.append(reward(completions=TEXTS[rank::2], **columns))
    torch.save({"found": found, "memory": reward.pools.state_dict()}, f"{folder}/{rank}.pt")
    PartialState().destroy_process_group()


def test_two_processes_have_the_pools_of_one(tmp_path, run_processes, scorer):
    """An image that both have completions of is in the pools once, with its reference captions."""
    run_processes(__file__, *[[scorer.name, tmp_path]] * 2)
    reward = DistinctivenessReward(scorer, memory_batches=1, discriminator_weight=0.3)
    reward.discriminator.load_state_dict(torch.load(tmp_path / "start.pt", weights_only=True))
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for step, rows in enumerate(([0, 1, 2, 3], [4, 5, 6, 7])):
        expected = reward(completions=TEXTS, **as_columns(rows))
        for rank, part in enumerate(parts):
            assert part["found"][step] == pytest.approx(expected[rank::2], abs=1e-6)
    for part in parts:
        assert len(part["memory"][0]["image_ids"]) == 4 and len(part["memory"][0]["text_ids"]) == 8 + 4 * 2


def test_a_row_for_each_caption_is_the_same_as_a_list_of_captions(scorer):
    columns = as_columns([0, 1, 2, 3])
    whole = DistinctivenessReward(scorer)(completions=TEXTS, **columns)
    text, images = [pair[row % 2] for row, pair in enumerate(columns["captions"])], [[i] for i in columns["image"]]
    apart = DistinctivenessReward(scorer, "text")(completions=TEXTS, images=images, text=text)
    assert apart == pytest.approx(whole, abs=1e-6)


def test_reference_captions_are_negatives_unless_there_are_none(scorer):
    columns = as_columns([0, 1, 2, 3])
    alone = DistinctivenessReward(scorer, None)(completions=TEXTS, **columns)
    switched = DistinctivenessReward(scorer, reward=ContrastiveReward(use_references=False))
    assert alone == pytest.approx(switched(completions=TEXTS, **columns), abs=1e-6)
    assert all(a > b for a, b in zip(alone, DistinctivenessReward(scorer)(completions=TEXTS, **columns), strict=True))


def test_each_image_is_embedded_once_however_often_it_is_decoded(scorer, monkeypatch):
    embedded, encode = [], scorer.encode_images
    monkeypatch.setattr(scorer, "encode_images", lambda pixels: embedded.append(len(pixels)) or encode(pixels))
    reward = DistinctivenessReward(scorer)
    for rows in ([0, 1], [1, 2], [0, 2]):
        reward(completions=TEXTS[:4], **as_columns(rows))
    assert embedded == [2, 1]


def test_embeddings_of_the_images_used_last_are_kept(scorer, monkeypatch):
    embedded, encode = [], scorer.encode_images
    monkeypatch.setattr(scorer, "encode_images", lambda pixels: embedded.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr("hf_distinct.rewards.trl.KEPT_IMAGES", 2)
    reward = DistinctivenessReward(scorer)
    for rows in ([0, 1], [0, 2], [0, 2], [0, 1]):  # 2 takes the place of 1
        reward(completions=TEXTS[:4], **as_columns(rows))
    assert embedded == [2, 1, 1]
    reward(completions=TEXTS[:6], **as_columns([0, 1, 2]))  # more images in a step than are kept
    assert embedded == [2, 1, 1, 1]


def test_a_row_without_an_image_gets_no_number_and_changes_none(scorer):
    columns = as_columns([0, 1, 2, 3])
    expected = DistinctivenessReward(scorer)(completions=TEXTS, **columns)
    mixed = {name: [None, *values] for name, values in columns.items()}
    found = DistinctivenessReward(scorer)(completions=["five", *TEXTS], **mixed)
    assert found[0] is None and found[1:] == expected
    reward = DistinctivenessReward(scorer, discriminator_weight=0.5)
    assert reward(completions=["five", "six"], images=[None, []], captions=[None, []]) == [None, None]


# ------------------------------------------------------------------------------------------------------ captions


@pytest.mark.parametrize(
    ("completion", "caption"),
    [
        (" A red dog.\n", "A red dog."),
        ([{"role": "assistant", "content": "A red dog\n\non a  mat"}], "A red dog on a mat"),
        ([{"content": [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": "dog"}]}], "A dog"),
        ("<think>\nIs it a cat?\n</think>\n\nA red dog", "A red dog"),
        ("It is no cat.</think>A red dog", "A red dog"),  # the prompt of some models ends with <think>
        ("<think> Is it a", ""),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"role": "assistant", "content": "wait"}, {"role": "tool", "content": "3"}, {"content": "a cat"}], "a cat"),
    ],
)  # fmt: skip
def test_the_caption_in_a_completion(completion, caption):
    assert caption_of(completion) == caption


@pytest.mark.parametrize("completion", [None, [], [{"role": "assistant"}], ["a"], [{"content": [{"type": "text"}]}]])
def test_a_completion_of_another_form(completion):
    with pytest.raises(ValueError, match="a completion should be a text or a list of messages, not"):
        caption_of(completion)


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory_batches": -1}, "memory_batches=-1 must be at least 0"),
        ({"discriminator_weight": 1.5}, "discriminator_weight=1.5 must lie between 0 and 1"),
        ({"discriminator_weight": 0.1, "references": None}, "The discriminator learns from reference captions"),
        ({"reward": "contrastiv"}, "did you mean 'contrastive'"),
    ],
)
def test_settings_that_are_not_possible(scorer, settings, said):
    with pytest.raises(ValueError, match=said):
        DistinctivenessReward(scorer, **settings)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": None}, "needs the dataset's column 'image', or 'images'"),
        ({"captions": None}, "references='captions' is not a column that the reward gets"),
        ({"captions": [["a"], [3]] * 4}, r"'captions' should contain a list of reference captions .* not \[3\]"),
        ({"captions": [["a"], {"raw": "b"}] * 4}, "not {'raw': 'b'}"),
        ({"image": ["a.png"] * 8}, "cannot be decoded: .* a str is not an image"),
        ({"images": [["a", "b"]] * 8}, "A row has 2 images in column 'images'"),
    ],
)
def test_columns_that_it_cannot_use(scorer, columns, said):
    given = {name: values for name, values in (as_columns([0, 1, 2, 3]) | columns).items() if values is not None}
    with pytest.raises(ValueError, match=said):
        DistinctivenessReward(scorer)(completions=TEXTS, **given)


# ------------------------------------------------------------------------------------------------- within GRPOTrainer


@pytest.fixture(scope="module")
def vlm(tmp_path_factory) -> Path:
    return tiny_vlm.build(tmp_path_factory.mktemp("vlm"))


def grpo(vlm: Path, output: Path, reward: DistinctivenessReward, **settings: Any) -> GRPOTrainer:
    usual = {
        "per_device_train_batch_size": 8, "num_generations": 2, "max_completion_length": 12, "top_k": 20,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False,
    }  # fmt: skip
    args = GRPOConfig(str(output), **usual | settings)
    return GRPOTrainer(
        str(vlm), reward_funcs=reward, args=args, train_dataset=tiny_vlm.rows(), eval_dataset=tiny_vlm.rows(8),
        callbacks=[reward],
    )  # fmt: skip


def test_trl_trains_on_the_numbers_that_it_gets(vlm, tmp_path):
    """Ten steps on emoji scenes, by the shipped scorer."""
    seen: list[list[float | None]] = []

    class Seen(DistinctivenessReward):
        def __call__(self, *args: Any, **columns: Any) -> list[float | None]:
            seen.append(super().__call__(*args, **columns))
            return seen[-1]

    trainer = grpo(vlm, tmp_path, Seen("scorer"), max_steps=10)
    before = tiny.weights(trainer.model)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert [log["rewards/contrastive/mean"] for log in logs] == pytest.approx([sum(each) / 8 for each in seen])
    assert len(seen) == 10 and all(log["cut_by_scorer"] == 0.0 for log in logs)
    assert len(tiny.moved(before, trainer.model)) > len(before) / 2


def test_memory_and_discriminator_learn_in_training_and_are_resumed(vlm, tmp_path, scorer):
    """They are in each checkpoint, and an evaluation between two steps changes nothing."""

    def reward() -> DistinctivenessReward:
        torch.manual_seed(0)
        return DistinctivenessReward(scorer, memory_batches=2, discriminator_weight=0.3)

    stopped = reward()
    often = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    trainer = grpo(vlm, tmp_path / "run", stopped, **often)
    trainer.train()
    trainer.evaluate()
    assert stopped.discriminator.steps == 4 and len(stopped.pools.memory) == 2
    resumed = reward()
    grpo(vlm, tmp_path / "run", resumed, **often).train(str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.discriminator.steps == 4 and len(resumed.pools.memory) == 2
    # Images are embedded in other batches, which round otherwise.
    torch.testing.assert_close(resumed.pools.state_dict(), stopped.pools.state_dict(), rtol=0, atol=1e-6)
    weights = stopped.discriminator.discriminator.state_dict()
    torch.testing.assert_close(resumed.discriminator.discriminator.state_dict(), weights, rtol=0, atol=1e-6)


def test_what_checkpoints_must_hold_has_to_be_a_callback(vlm, tmp_path, scorer, caplog):
    reward = DistinctivenessReward(scorer, memory_batches=1)
    with pytest.raises(ValueError, match="add the object to the trainer's callbacks too"):
        reward(completions=TEXTS, trainer_state=TrainerState(), **as_columns([0, 1, 2, 3]))
    reward = DistinctivenessReward(scorer)
    assert reward(completions=TEXTS, trainer_state=TrainerState(), **as_columns([0, 1, 2, 3]))
    often = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    grpo(vlm, tmp_path, DistinctivenessReward(scorer, memory_batches=1), **often).train()
    (tmp_path / "checkpoint-1" / "contrastive.pt").unlink()
    trainer = grpo(vlm, tmp_path, DistinctivenessReward(scorer, memory_batches=1), **often)
    trainer.train(str(tmp_path / "checkpoint-1"))
    assert "contrastive.pt is missing: the memory and the discriminator" in caplog.text


if __name__ == "__main__":
    one_of_two(int(sys.argv[1]), *sys.argv[2:])
