"""Settings: what they mean together, and that each contradiction is an error that names them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re

import pytest
from transformers import HfArgumentParser

from hf_distinct import RLCaptionConfig
from hf_distinct.runs.arguments import parse_settings
from hf_distinct.settings import help_from_docstring

NAMES = ("Rollouts", "AlarmMode", "BaselineSetting", "Normalization", "ReferenceWeighting", "TrainedScorer")
LITERALS = dict.fromkeys(NAMES, "str")


def test_two_configs_share_no_list():
    first, second = RLCaptionConfig(), RLCaptionConfig()
    first.reward.append("cider")
    assert second.reward == ["contrastive"]


def documented(kind):
    """The entries of a configuration class's docstring: what stands after each name, and the text."""
    told = re.findall(r"^ {4}(\w+) \((.+)\):\n((?: {8}.*\n?)+)", inspect.getdoc(kind), re.MULTILINE)
    return {name: (head, " ".join(text.split())) for name, head, text in told}


def test_every_setting_is_documented_where_it_is_defined():
    fields = {field.name: field for field in dataclasses.fields(RLCaptionConfig)}
    own = list(RLCaptionConfig.__annotations__)
    told = documented(RLCaptionConfig)
    assert len(own) > 30 and list(told) == own
    for name, (head, text) in told.items():
        field = fields[name]
        # Not field.type, in the place of which HfArgumentParser puts the type itself.
        annotation = RLCaptionConfig.__annotations__[name]
        kinds = [LITERALS.get(kind, kind) for kind in annotation.split(" | ") if kind != "None"]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        of_type, _, of_default = head.partition(", *optional*")
        assert of_type.replace("`", "").split(" or ") == kinds, name
        shown = re.fullmatch(r", defaults to `(.+)`", of_default)
        assert (ast.literal_eval(shown[1]) if shown else None) == default, name
        assert re.fullmatch(r"[A-Z].+\.", text), name
        assert field.metadata["help"] == text, name


def test_help_comes_from_the_docstring_and_may_hold_a_percent_sign(capsys):
    @help_from_docstring
    @dataclasses.dataclass
    class Settings:
        """Settings of a test.

        Parameters:
            share (`float`, *optional*, defaults to `0.5`):
                Share of all,
                100 % at most.
        """

        share: float = 0.5
        other: int = dataclasses.field(default=1, metadata={"help": "Another."})

    with pytest.raises(SystemExit):
        HfArgumentParser((Settings,)).parse_args_into_dataclasses(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "Share of all, 100 % at most. (default: 0.5)" in told and "Another. (default: 1)" in told


@pytest.mark.parametrize("name", ["log_samples", "num_generations"])
def test_a_setting_that_does_not_exist_is_an_error(name, capsys):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        RLCaptionConfig(**{name: 3})
    with pytest.raises(SystemExit):
        parse_settings(RLCaptionConfig, argv=[f"--{name}", "3"])
    assert f"unknown setting --{name}; did you mean --" in capsys.readouterr().err


def test_beam_search_has_one_rollout_unless_more_of_its_beams_are_asked_for():
    assert RLCaptionConfig().num_rollouts == 5
    assert RLCaptionConfig(rollouts="beam").num_rollouts == 1
    assert RLCaptionConfig(rollouts="beam", num_rollouts=5).num_rollouts == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollouts": "greedy"}, "rollouts='greedy' is unknown; choose one of sample, beam"),
        ({"baseline": "mean"}, "baseline='mean' is unknown; choose one of auto, none, greedy, leave_one_out"),
        ({"wtf_policy": "max"}, "wtf_policy='max' is unknown; choose one of clamp, softmax, shift, raw, constant"),
        ({"length_normalization": "sum"}, "length_normalization='sum' is unknown; choose one of tokens, constant"),
        ({"num_rollouts": 0}, "num_rollouts=0 must be at least 1"),
        ({"num_beams": 0}, "num_beams=0 must be at least 1"),
        ({"references_per_image": 0}, "references_per_image=0 must be at least 1"),
        ({"pool_neighbours": -1}, "pool_neighbours=-1 must be at least 0"),
        ({"neighbour_first_rank": 0}, "neighbour_first_rank=0 must be at least 1"),
        ({"memory_batches": -1}, "memory_batches=-1 must be at least 0"),
        ({"wtf_weight": -0.5}, "wtf_weight=-0.5 must be at least 0"),
        ({"wtf_weight": math.nan}, "wtf_weight=nan must be at least 0"),
        ({"kl_weight": math.inf}, "kl_weight=inf must be at least 0, and finite"),
        ({"num_rollouts": 2.0}, "num_rollouts=2.0 must be an integer"),
        ({"generation_num_beams": 0}, "generation_num_beams=0 must be at least 1"),
        ({"reward": ["similarity"], "reward_weights": [math.nan]}, "reward_weights: nan is no finite number"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must be at least 0"),
        ({"discriminator_pretrain_steps": -1}, "discriminator_pretrain_steps=-1 must be at least 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1 must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"num_completions_to_print": 0}, "num_completions_to_print=0 must be at least 1"),
        ({"max_reference_length": 1}, "max_reference_length=1 must be at least 2"),
        ({"discriminator_weight": 1.5}, "discriminator_weight=1.5 must lie between 0 and 1"),
        ({"discriminator_weight": math.nan}, "discriminator_weight=nan must lie between 0 and 1"),
        ({"temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"reward_clamp": 0.0}, "reward_clamp=0.0 must be positive"),
        ({"discriminator_lr": 0.0}, "discriminator_lr=0.0 must be positive"),
        ({"baseline": "leave_one_out", "num_rollouts": 1}, "needs num_rollouts of at least 2"),
        ({"baseline": "leave_one_out", "rollouts": "beam"}, "needs num_rollouts of at least 2"),
        ({"rollouts": "beam", "num_rollouts": 4, "num_beams": 3}, "not num_rollouts=4 and num_beams=3: raise"),
        ({"reward": []}, "reward is empty"),
        ({"reward": ["similarity", "cider"], "reward_weights": [1.0]}, "1 reward_weights for 2 rewards"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be off"),
        ({"alarms": "loud"}, "alarms='loud' is unknown; choose one of off, warn, stop"),
        ({"alarms": "stop"}, "set load_best_model_at_end, metric_for_best_model (e.g. judge/t2i_R@1), eval_strategy"),
        ({"alarm_cider_floor": 1.5}, "alarm_cider_floor=1.5 must lie between 0 and 1"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs metric_for_best_model"),
        ({"save_strategy": "best"}, "save_strategy=best needs metric_for_best_model"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau needs metric_for_best_model"),
    ],
)
def test_what_contradicts_itself_is_an_error(settings, message):
    with pytest.raises(ValueError) as caught:
        RLCaptionConfig(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"discriminator_weight": 0.0}, {"discriminator_weight": 1.0}, {"num_rollouts": 1}]
)
def test_the_bounds_themselves_are_allowed(settings):
    RLCaptionConfig(**settings)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("judge/t2i_R@1", True), ("CIDEr-D", True), ("eval_i2t_median_rank", False), ("perplexity", False),
     ("self_bleu", False), ("bad_endings", False), ("repeats", False), ("eval_loss", False)],
)  # fmt: skip
def test_it_knows_of_which_metrics_the_least_is_the_best(metric, greater):
    assert RLCaptionConfig(metric_for_best_model=metric).greater_is_better is greater
    assert (
        RLCaptionConfig(metric_for_best_model=metric, greater_is_better=not greater).greater_is_better is not greater
    )


def test_it_is_read_from_a_command_line_and_written_as_json(tmp_path):
    line = (
        f"--output_dir {tmp_path} --reward contrastive cider --reward_weights 1 0.5 --max_new_tokens 7 "
        "--wtf_policy softmax --pool_references False --rollouts beam"
    )
    (config,) = HfArgumentParser((RLCaptionConfig,)).parse_args_into_dataclasses(line.split())
    assert config.reward == ["contrastive", "cider"] and config.reward_weights == [1.0, 0.5]
    assert config.max_new_tokens == 7 and config.wtf_policy == "softmax" and config.pool_references is False
    assert json.loads(config.to_json_string())["reward_weights"] == [1.0, 0.5]
    again = RLCaptionConfig(**{k: v for k, v in config.to_dict().items() if k in ("reward", "rollouts", "baseline")})
    assert again.reward == config.reward and again.num_rollouts == 1


def test_it_remembers_what_it_was_told_and_nothing_of_the_machine():
    config = RLCaptionConfig(output_dir="elsewhere", rollouts="beam", reward=["similarity"], learning_rate=1e-5)
    assert config.changed == {"output_dir": "elsewhere", "rollouts": "beam", "reward": ["similarity"]}
    assert config.num_rollouts == 1  # which follows from it, and was not told


def test_one_reward_may_stand_without_a_list():
    assert RLCaptionConfig(reward="cider", use_cpu=True).reward == ["cider"]
