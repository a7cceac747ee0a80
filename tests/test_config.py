"""Settings: what they mean together, and that each contradiction is an error that names them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_distinct import RLCaptionConfig


def test_two_configs_share_no_list():
    first, second = RLCaptionConfig(), RLCaptionConfig()
    first.reward.append("cider")
    assert second.reward == ["contrastive"]


def test_every_setting_of_ours_says_what_it_is():
    parents = {f.name for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    ours = [f for f in dataclasses.fields(RLCaptionConfig) if f.name not in parents]
    assert len(ours) > 20
    assert [f.name for f in ours if not f.metadata.get("help")] == []


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
