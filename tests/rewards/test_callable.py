"""Functions as rewards: what they are given, and what they must not give back."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
import traceback

import numpy as np
import pytest
import torch
from transformers import TrainerState

from hf_distinct.rewards import CallableReward, SimilarityReward
from hf_distinct.rewards.callable import evaluate_rewards


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
    ours = {"completions", "prompts", "completion_ids", "trainer_state", "log_metric", "log_extra"}
    assert set(seen) == {"references", "image_id", "year"} | ours
    assert seen["image_id"] == ["x", "y"]


def test_functions_written_for_trl(batch):
    def length(prompts, completions, **kwargs):
        assert prompts == ["", ""]
        return [float(len(completion)) for completion in completions]

    assert CallableReward(length)(batch).tolist() == [5.0, 9.0]
    assert CallableReward(lambda completions, **kwargs: [len(c) for c in completions])(batch).tolist() == [5, 9]


def test_a_repetition_penalty_as_in_trl(batch):
    class Penalty:  # an object that is called, has a name, and reads the tokens alone
        __name__ = "repetition_penalty"

        def __call__(self, completion_ids, **kwargs):
            return [len(set(ids)) / len(ids) - 1 for ids in completion_ids]

    batch.completion_ids = [[5, 5, 1], [5, 6, 7, 1]]
    reward = CallableReward(Penalty())
    assert reward.name == "repetition_penalty"
    assert reward(batch).tolist() == [pytest.approx(-1 / 3), 0.0]


def test_what_a_function_logs(batch):
    def length(completions, trainer_state, log_metric, log_extra, **kwargs):
        log_metric("longest", max(map(len, completions)))
        log_metric("longest", trainer_state.global_step)
        log_extra("text", completions)
        return [0.0 for _ in completions]

    batch.trainer_state = TrainerState(global_step=7)
    CallableReward(length)(batch)
    assert batch.metrics == {"longest": [9.0, 7.0]} and batch.extras == {"text": ["a dog", "a red cat"]}


@pytest.mark.parametrize(
    ("logged", "said"),
    [
        ([("text", ["a"])], r"log_extra\('text'\) got 1 values for 2 captions"),
        ([("text", ["a", "b"])] * 2, "log_extra got the column 'text' twice"),
    ],
)
def test_extra_columns_that_no_table_can_show(batch, logged, said):
    def broken(completions, log_extra):
        for column, values in logged:
            log_extra(column, values)
        return [0.0, 0.0]

    with pytest.raises(RuntimeError, match=f"reward 'broken' failed: ValueError: {said}"):
        CallableReward(broken)(batch)


def test_none_is_where_a_reward_does_not_apply(batch):
    reward = CallableReward(lambda captions: [None, 2.0])
    torch.testing.assert_close(reward(batch), torch.tensor([math.nan, 2.0]), equal_nan=True)
    values, applies = reward.begin(batch)()
    assert values.tolist() == [0.0, 2.0] and applies.tolist() == [False, True]
    values, applies = CallableReward(lambda captions: np.array([None, math.nan])).begin(batch)()
    assert math.isnan(values[1]) and applies.tolist() == [False, True]  # a NaN is no None


# --- asynchronous functions --------------------------------------------------------------------------------------


def test_asynchronous_rewards_run_at_the_same_time(batch):
    met = threading.Barrier(2)  # nobody passes alone

    async def first(completions, **kwargs):
        await asyncio.to_thread(met.wait, 30)
        return [1.0 for _ in completions]

    class Second:
        async def __call__(self, captions):
            await asyncio.to_thread(met.wait, 30)
            return [None, 2.0]

    rewards = [CallableReward(first), SimilarityReward(), CallableReward(Second())]
    (one, _), (_, everywhere), (two, applies) = evaluate_rewards(rewards, batch)
    assert one.tolist() == [1.0, 1.0] and two.tolist() == [0.0, 2.0]
    assert everywhere.tolist() == [True, True] and applies.tolist() == [False, True]


def test_all_calls_have_one_event_loop(batch):
    loops = []

    async def reward(captions):
        loops.append(asyncio.get_running_loop())
        return [0.0, 0.0]

    CallableReward(reward)(batch), CallableReward(functools.partial(reward))(batch)
    assert loops[0] is loops[1] and not loops[0].is_closed()

    async def within():  # as in a notebook, where a loop runs already
        return CallableReward(reward)(batch).tolist()

    assert asyncio.run(within()) == [0.0, 0.0]


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
    assert CallableReward(functools.partial(length)).name == "length"
    assert not CallableReward(length).is_advantage


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["0.5", [0.5], object(), 1j, {}])
def test_a_value_that_is_no_number(batch, bad):
    def broken(captions):
        return [1.0, bad]

    with pytest.raises(ValueError, match="reward 'broken' returned .* for row 1, caption 'a red cat'"):
        CallableReward(broken)(batch)


def test_arrays_are_searched_too(batch):
    with pytest.raises(ValueError, match="reward 'broken' returned 'x' for row 0, caption 'a dog'"):
        CallableReward(lambda captions: np.array(["x", 1.0], dtype=object), "broken")(batch)
    with pytest.raises(ValueError, match=r"reward 'broken' returned \[1.0\] for row 0"):
        CallableReward(lambda captions: torch.ones(2, 1), "broken")(batch)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39, float("-1e39"), 10**400, -(10**400)])
def test_what_is_not_finite_is_left_to_the_trainer(batch, value):
    expected = math.inf if value > 0 else -math.inf if value < 0 else math.nan
    for given in ([1.0, value], np.array([1.0, value])):
        found = CallableReward(lambda captions, given=given: given, "odd")(batch)
        torch.testing.assert_close(found, torch.tensor([1.0, expected]), equal_nan=True)


def test_too_few_values(batch):
    message = r"reward 'broken' returned 1 values for 2 captions: row 1 \(caption 'a red cat'\) has none"
    with pytest.raises(ValueError, match=message):
        CallableReward(lambda captions: [1.0], "broken")(batch)


def test_too_many_values(batch):
    with pytest.raises(ValueError, match="reward 'broken' returned 3 values for 2 captions: return no more"):
        CallableReward(lambda captions: [1.0, 2.0, 3.0], "broken")(batch)


@pytest.mark.parametrize("value", [None, 0.5, "ab", torch.tensor(1.0), {0: 1.0, 1: 2.0}, iter([1.0, 2.0])])
def test_no_list(batch, value):
    with pytest.raises(ValueError, match="reward 'broken' returned .*, not a list of 2 numbers"):
        CallableReward(lambda captions: value, "broken")(batch)


def test_a_parameter_that_is_no_column(batch):
    said = "reward 'broken' needs 'weather', which is not a column .*; these are image_id, year. The function may"
    with pytest.raises(ValueError, match=said):
        CallableReward(lambda captions, weather: [0, 0], "broken")(batch)


def test_the_columns_that_a_function_needs():
    reward = CallableReward(lambda completions, style, mood, year=1, *, log_metric: [0], "picky")
    assert not list(reward.problems(["style", "mood"]))
    (problem,) = reward.problems(["mood", "colour"])
    assert "reward 'picky' needs 'style', which is not a column" in problem and "these are colour, mood." in problem
    (problem,) = reward.problems([])
    assert "needs 'mood', 'style'" in problem and "these are none." in problem
    assert not list(CallableReward(lambda **everything: [0]).problems([]))
    (problem,) = CallableReward(len).problems(["style"])
    assert "reward 'len' is called with keyword arguments, but its obj is" in problem


def test_an_error_of_the_function_is_told_as_its_own(batch):
    def broken(captions):
        raise KeyError("mine")

    async def broken_later(captions):
        raise ValueError("mine too")

    class Broken:
        name, is_advantage = "broken object", True

        def __call__(self, batch):
            raise IndexError("mine as well")

    for reward, kind in (
        (CallableReward(broken), KeyError),
        (CallableReward(broken_later), ValueError),
        (Broken(), IndexError),
    ):
        with pytest.raises(RuntimeError, match=f"reward '{reward.name}' failed: {kind.__name__}: .*mine") as raised:
            evaluate_rewards([reward], batch)
        cause = raised.value.__cause__
        assert type(cause) is kind
        frames = traceback.extract_tb(cause.__traceback__)
        assert frames[-1].filename == __file__ and "raise" in str(frames[-1].line)


@pytest.mark.parametrize(("given", "said"), [([0.0], "list"), (torch.ones(3), r"shape \(3,\)")])
def test_an_object_that_gives_something_else(batch, given, said):
    class Odd:
        name, is_advantage = "odd", True

        def __call__(self, batch):
            return given

    with pytest.raises(ValueError, match=f"reward 'odd' returned {said} instead of a tensor of 2 numbers"):
        evaluate_rewards([Odd()], batch)


def test_not_callable():
    with pytest.raises(TypeError, match="must be callable, got int"):
        CallableReward(3)


def test_parameters_that_take_no_name_are_told_before_the_first_call():
    (problem,) = CallableReward(lambda captions, /: [1.0] * len(captions), "odd").problems([])
    assert "its captions is positional-only: remove the / from its parameters" in problem
