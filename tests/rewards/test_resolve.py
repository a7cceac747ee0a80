"""From a setting to a reward."""

from __future__ import annotations

import textwrap

import pytest
from torch import nn

from hf_distinct.rewards import (
    BUILT_IN_REWARDS,
    CallableReward,
    CiderReward,
    ContrastiveReward,
    SimilarityReward,
    resolve_reward,
)


@pytest.mark.parametrize("name", BUILT_IN_REWARDS)
def test_built_in_names(name):
    reward = resolve_reward(name, references_corpus=[["a dog"], ["a cat"]])
    assert reward.name == name
    assert reward.is_advantage == name.startswith("contrastive")


def test_built_in_classes():
    assert [resolve_reward(f"contrastive{end}").direction for end in ("", "_i2t", "_t2i")] == ["both", "i2t", "t2i"]
    assert isinstance(resolve_reward("similarity"), SimilarityReward)
    assert isinstance(resolve_reward("cider", references_corpus=[["a dog"]]), CiderReward)


def test_contrastive_settings():
    reward = resolve_reward("contrastive_t2i", contrastive_settings={"clamp": 3.0, "use_greedy": False})
    assert (reward.clamp, reward.use_greedy, reward.use_references) == (3.0, False, True)


def test_objects():
    mine = ContrastiveReward("i2t")
    assert resolve_reward(mine) is mine
    assert isinstance(resolve_reward(SimilarityReward), SimilarityReward)

    def brevity(captions):
        return [1 / len(caption.split()) for caption in captions]

    reward = resolve_reward(brevity)
    assert isinstance(reward, CallableReward)
    assert reward.name == "brevity"


def test_dotted_paths(monkeypatch, tmp_path):
    (tmp_path / "some_rewards").mkdir()
    (tmp_path / "some_rewards" / "__init__.py").write_text("")
    (tmp_path / "some_rewards" / "short.py").write_text("def brevity(captions):\n    return [1.0 for _ in captions]\n")
    (tmp_path / "some_rewards" / "broken.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_reward("some_rewards.short.brevity").name == "brevity"
    reward = resolve_reward("hf_distinct.rewards.similarity.SimilarityReward")
    assert isinstance(reward, SimilarityReward)
    with pytest.raises(ValueError, match="no 'brevitty' in some_rewards.short; did you mean 'brevity'"):
        resolve_reward("some_rewards.short.brevitty")
    with pytest.raises(ValueError, match="there is no module 'some_rewards.long'"):
        resolve_reward("some_rewards.long.brevity")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        resolve_reward("some_rewards.broken.brevity")


def test_a_file(make_batch, tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(
        textwrap.dedent(
            """
            from __future__ import annotations
            from dataclasses import dataclass

            def brevity(captions, **columns):
                return [1 / len(caption.split()) for caption in captions]

            @dataclass
            class Whole:
                name: str = "whole"
                is_advantage: bool = True

                def __call__(self, batch):
                    return batch.text_embeds.sum(dim=-1)

            number = 3
            """
        )
    )
    batch = make_batch(captions=["a dog", "a dog that runs"])
    assert resolve_reward(f"{path}:brevity")(batch).tolist() == [0.5, 0.25]
    whole = resolve_reward(f"{path}:Whole")
    assert (whole.name, whole.is_advantage, whole(batch).tolist()) == ("whole", True, [1.0, 1.0])
    with pytest.raises(ValueError, match="did you mean 'brevity'"):
        resolve_reward(f"{path}:brevit")
    with pytest.raises(ValueError, match="found int, expected a function or a class"):
        resolve_reward(f"{path}:number")
    with pytest.raises(ValueError, match="there is no file"):
        resolve_reward(f"{tmp_path / 'other.py'}:brevity")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is not a Python file"):
        resolve_reward(f"{tmp_path / 'notes.txt'}:brevity")


def test_a_file_that_fails_can_be_mended(tmp_path):
    path = tmp_path / "failing.py"
    path.write_text("raise RuntimeError('not yet')")
    with pytest.raises(RuntimeError, match="not yet"):
        resolve_reward(f"{path}:reward")
    path.write_text("def reward(captions):  # mended\n    return [0.0 for _ in captions]\n")
    assert resolve_reward(f"{path}:reward").name == "reward"


def test_reward_models_are_refused_in_words():
    for model in ("OpenAssistant/reward-deberta", "Skywork/Llama-3.1-8B", "./models/reward", nn.Linear(2, 1)):
        with pytest.raises(ValueError, match="Reward models .* are not supported: write a function"):
            resolve_reward(model)


def test_a_class_that_needs_arguments():
    class Threshold:
        def __init__(self, least):
            self.least = least

        def __call__(self, captions):
            return [float(len(caption) > self.least) for caption in captions]

    with pytest.raises(ValueError, match="instantiated without arguments, but missing a required argument: 'least'"):
        resolve_reward(Threshold)
    assert resolve_reward(Threshold(3)).name == "Threshold"


def test_unknown_names():
    with pytest.raises(ValueError, match="reward 'contrastve' is unknown; did you mean 'contrastive'"):
        resolve_reward("contrastve")
    with pytest.raises(ValueError, match="Use one of contrastive, "):
        resolve_reward("zzz")
    with pytest.raises(ValueError, match="reward 'cider' needs references_corpus"):
        resolve_reward("cider")
    with pytest.raises(ValueError, match="found int"):
        resolve_reward(3)
