"""The judge of grammar: it learns, it finds what it is made for, and it loads safely."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_distinct.evaluation.corruptions import CORRUPTIONS
from hf_distinct.evaluation.grammar import GrammarJudge, accuracy_by_kind, train_grammar_judge

NOUNS = ["man", "woman", "boy", "girl", "dog", "cat", "horse", "child", "player", "skier"]
DOING = ["runs", "plays", "jumps", "sits", "stands", "rides a bike", "throws a ball", "holds a stick"]
PLACES = ["park", "street", "field", "snow", "grass", "water", "house", "beach"]


def people(count: int, seed: int) -> list[str]:
    """Captions as people might write them."""
    draw = Random(seed).choice
    return [
        f"{draw(['a', 'the'])} {draw(['young', 'small', 'black', 'tall'])} {draw(NOUNS)} {draw(DOING)} "
        f"{draw(['in', 'on', 'near', 'behind'])} {draw(['a', 'the'])} {draw(PLACES)}"
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def judge() -> GrammarJudge:
    return train_grammar_judge(people(1500, 0), epochs=5, batch_size=64, width=32, learning_rate=1e-2)


def test_it_tells_people_from_what_rewards_breed(judge):
    found = accuracy_by_kind(judge, people(200, 1))
    assert set(found) == {"people", *CORRUPTIONS}
    for kind in ("people", "shuffled", "repeated_word", "repeated_phrase", "cut", "doubled_article", "heap"):
        assert found[kind] > 0.8, kind
    hacked = [
        "young girl girl girl the street the street the street", "a man in a", "a girl holds a girl holds a girl",
        "the young dog runs in the", "a young man runs in in the park",
    ]  # fmt: skip
    assert not judge.accepts(hacked).any()
    assert judge.accepts(["a young girl throws a ball in the park", "the tall man sits near a house"]).all()


def test_it_finds_words_repeated_that_it_does_not_know(judge):
    known, again = judge.score(["a young zebra sits near a house", "a young zebra zebra zebra sits near a house"])
    assert known > 0.5 > again


def test_the_same_seed_gives_the_same_judge_and_nothing_else_is_drawn():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    captions = people(40, 2)
    first, second, other = (train_grammar_judge(captions, epochs=1, width=8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert first.score(captions).tolist() != other.score(captions).tolist()


def test_scores_do_not_depend_on_company(judge):
    captions = [*people(5, 3), "", "a dog", "dog " * 100]
    together = judge.score(captions)
    assert together[5] == 0
    assert together.tolist() == pytest.approx([judge.score([each])[0] for each in captions], abs=1e-6)
    assert judge.score([]).tolist() == []


def test_how_long_ago_a_word_and_a_pair_were_said():
    """By hand, of a dog a dog dog: the word "a" two words ago, "dog" two and one; the pair "a dog" two."""
    judge = GrammarJudge(["dog"], 4)
    ids, ago, lengths = judge.batch([["a", "dog", "a", "dog", "dog"], ["dog"]])
    assert ids.tolist() == [[1, 2, 1, 2, 2], [2, 0, 0, 0, 0]] and lengths.tolist() == [5, 1]
    assert ago[0].tolist() == [[0, 0], [0, 0], [2, 0], [2, 2], [1, 0]]
    assert not ago[1].any()


def test_it_is_saved_and_loaded(judge, tmp_path):
    judge.accuracy = {"people": 0.9}
    judge.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again, captions = GrammarJudge.load(tmp_path), people(5, 4)
    assert again.accuracy == judge.accuracy and not again.training
    assert again.score(captions).tolist() == judge.score(captions).tolist()


def _config(folder, **changed):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "No such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "Expecting"),
        (lambda folder: _config(folder, kind="bert"), "not that of a caption grammar judge"),
        (lambda folder: _config(folder, width=10**9), "width=1000000000 is not a number from 1 to 1024"),
        (lambda folder: _config(folder, vocabulary=["dog"]), "judges of different sizes"),
        (lambda folder: _config(folder, vocabulary=[["dog"]]), "not a list of words"),
        (lambda folder: _config(folder, accuracy=[1]), "accuracy"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"pickle"), "Error while deserializing"),
    ],
)  # fmt: skip
def test_a_damaged_one_is_one_clear_line(judge, tmp_path, spoil, said):
    judge.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match="contains no readable grammar judge") as error:
        GrammarJudge.load(tmp_path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_weights_that_are_not_finite(judge, tmp_path):
    judge.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["head.bias"] = torch.tensor([float("nan")])
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="NaN or infinity"):
        GrammarJudge.load(tmp_path)


def test_wrong_input(judge):
    with pytest.raises(ValueError, match="list of captions"):
        judge.score("a dog")
    with pytest.raises(ValueError, match="there are none"):
        train_grammar_judge(["dog", ""])
    with pytest.raises(ValueError, match="no captions"):
        accuracy_by_kind(judge, [])
