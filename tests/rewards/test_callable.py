"""Functions as rewards: what they are given, and what they must not give back."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

from hf_distinct.rewards import CallableReward


@pytest.fixture
def batch(make_batch):
    return make_batch(
        captions=["a dog", "a red cat"],
        references=[["one", "two"], ["three"]],
        columns={"image_id": ["x", "y"], "year": [1990, 2001]},
    )


# --- what the function is given ----------------------------------------------------------------------------------


def test_captions_and_references(batch):
    def count(captions, references):
        return [len(caption.split()) + len(refs) for caption, refs in zip(captions, references, strict=True)]

    result = CallableReward(count)(batch)
    assert result.tolist() == [4.0, 4.0]
    assert result.dtype == torch.float32


def test_only_the_columns_it_names(batch):
    assert CallableReward(lambda captions, year: [y - 1990 for y in year])(batch).tolist() == [0, 11]
    assert CallableReward(lambda year, *, scale=2: [scale * y for y in year])(batch).tolist() == [3980, 4002]


def test_all_with_keyword_arguments(batch):
    seen = {}

    def reward(captions, **columns):
        seen.update(columns)
        return [0, 0]

    CallableReward(reward)(batch)
    assert set(seen) == {"references", "completions", "prompts", "image_id", "year"}
    assert seen["image_id"] == ["x", "y"]


def test_functions_written_for_trl(batch):
    def length(prompts, completions, **kwargs):
        assert prompts == ["", ""]
        return [float(len(completion)) for completion in completions]

    assert CallableReward(length)(batch).tolist() == [5.0, 9.0]
    assert CallableReward(lambda completions, **kwargs: [len(c) for c in completions])(batch).tolist() == [5, 9]


def test_a_column_does_not_take_the_place_of_the_captions(make_batch):
    batch = make_batch(captions=["a", "bb"], columns={"completions": ["wrong", "wrong"]})
    assert CallableReward(lambda completions: [len(c) for c in completions])(batch).tolist() == [1, 2]


@pytest.mark.parametrize(
    "values", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), [np.float32(1), torch.tensor(2.5)], torch.tensor([1, 2.5])]
)
def test_any_sequence_of_numbers(batch, values):
    assert CallableReward(lambda captions: values)(batch).tolist() == [1.0, 2.5]


def test_names():
    class Length:
        def __call__(self, captions):
            return [len(caption) for caption in captions]

    def length(captions):
        return [0.0 for _ in captions]

    assert CallableReward(length).name == "length"
    assert CallableReward(length, "my length").name == "my length"
    assert CallableReward(Length()).name == "Length"
    assert CallableReward(functools.partial(length)).name == "partial"
    assert not CallableReward(length).is_advantage


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, "0.5", [0.5], object(), 1j])
def test_a_value_that_is_no_number(batch, bad):
    def broken(captions):
        return [1.0, bad]

    with pytest.raises(ValueError, match="reward 'broken' gave .* for row 1, caption 'a red cat'"):
        CallableReward(broken)(batch)


def test_arrays_are_searched_too(batch):
    with pytest.raises(ValueError, match="reward 'broken' gave None for row 0, caption 'a dog'"):
        CallableReward(lambda captions: np.array([None, 1.0]), "broken")(batch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, float("-1e39"), 10**400, -(10**400)])
def test_what_is_not_finite_is_left_to_the_trainer(batch, value):
    expected = math.inf if value > 0 else -math.inf if value < 0 else math.nan
    for given in ([1.0, value], np.array([1.0, value])):
        found = CallableReward(lambda captions, given=given: given, "odd")(batch)
        torch.testing.assert_close(found, torch.tensor([1.0, expected]), equal_nan=True)


def test_too_few_values(batch):
    message = r"reward 'broken' gave 1 values for 2 captions: row 1 \(caption 'a red cat'\) got none"
    with pytest.raises(ValueError, match=message):
        CallableReward(lambda captions: [1.0], "broken")(batch)


def test_too_many_values(batch):
    with pytest.raises(ValueError, match="reward 'broken' gave 3 values for 2 captions: the rest belong to none"):
        CallableReward(lambda captions: [1.0, 2.0, 3.0], "broken")(batch)


@pytest.mark.parametrize("value", [None, 0.5, "ab", torch.tensor(1.0), {0: 1.0, 1: 2.0}])
def test_no_list(batch, value):
    with pytest.raises(ValueError, match="reward 'broken' gave .* instead of a list of 2 numbers"):
        CallableReward(lambda captions: value, "broken")(batch)


def test_a_parameter_that_is_no_column(batch):
    with pytest.raises(ValueError, match="reward 'broken' needs 'weather', .*captions, completions, image_id"):
        CallableReward(lambda captions, weather: [0, 0], "broken")(batch)


def test_an_error_of_the_function_is_its_own(batch):
    def broken(captions):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        CallableReward(broken)(batch)


def test_not_callable():
    with pytest.raises(TypeError, match="must be callable, got int"):
        CallableReward(3)
