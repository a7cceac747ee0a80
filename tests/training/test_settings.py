"""No setting is ignored in silence: each acts, or is refused by name, or is Trainer's own affair for a reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
from datasets import DatasetDict
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

import hf_distinct
from hf_distinct import RLCaptionConfig
from hf_distinct.settings import REFUSED
from hf_distinct.training.settings import settings_problems

pytestmark = pytest.mark.both_ends
TESTS = Path(__file__).parents[1]
BEAM = {"rollouts": "beam"}
TRAINED_SCORER = {"train_scorer": "text", "scorer_lr": 0.01}

# Settings that change the figures of two steps: what else is set, and the value that makes another run of it.
CHANGES_A_STEP = {
    "data_seed": ({}, 5),
    "discriminator_lr": ({}, 1e-2),
    "discriminator_pretrain_steps": ({}, 1),
    "discriminator_weight": ({}, 0.5),
    "baseline": ({}, "none"),
    "freeze_encoder": ({}, True),
    "hard_batches": ({}, True),
    "kl_weight": ({}, 10.0),
    "length_normalization": ({}, "constant"),
    "max_new_tokens": ({}, 3),
    "max_reference_length": ({"wtf_policy": "constant"}, 4),
    "memory_batches": ({}, 2),
    "neighbour_first_rank": ({"pool_neighbours": 2}, 4),
    "no_repeat_ngram_size": (BEAM, 1),
    "num_beams": (BEAM, 2),
    "num_rollouts": ({}, 3),
    "pool_greedy": ({}, True),
    "pool_neighbours": ({}, 2),
    "pool_other_captions": ({}, False),
    "pool_own_rollouts": ({}, False),
    "pool_references": ({}, False),
    "references_per_image": ({"wtf_policy": "constant"}, 2),
    "reward": ({}, ["cider"]),
    "reward_clamp": ({"baseline": "none"}, 1e-4),
    "reward_weights": ({}, [2.0]),
    "rollouts": ({}, "beam"),
    "scorer_decay": (TRAINED_SCORER, 0.0),
    "scorer_loss_weights": (TRAINED_SCORER, [1.0, 5.0, 0.0, 0.0]),
    "scorer_lr": ({"train_scorer": "text"}, 0.1),
    "seed": ({}, 4),
    "temperature": ({}, 0.5),
    "train_scorer": ({"scorer_lr": 0.1}, "text"),
    "wtf_policy": ({}, "constant"),
    "wtf_weight": ({"wtf_policy": "constant"}, 0.5),
}

# Settings that the package's own code reads, and the test that shows what they do.
SHOWN_BY = {
    "activation_checkpointing": "end_to_end/test_trainer_options.py::"
    "test_checkpointed_layers_run_again_by_their_new_name",
    "activation_checkpointing_kwargs": "end_to_end/test_trainer_options.py::"
    "test_checkpointed_layers_run_again_by_their_new_name",
    "accelerator_config": "training/test_settings.py::test_batches_are_made_by_every_process",
    "alarm_cider_floor": "training/test_alarms.py::test_a_figure_out_of_its_bounds_twice_in_a_row_raises_an_alarm",
    "alarms": "training/test_alarms.py::test_who_only_warns_stops_nothing_and_who_is_off_says_nothing",
    "bf16": "end_to_end/test_trainer_options.py::test_half_precision_takes_nearly_the_step_of_full_precision",
    "dataloader_drop_last": "training/test_fit.py::test_a_batch_larger_than_the_data_is_a_clear_error",
    "dataloader_num_workers": "faults/test_corrupt_image.py::test_it_is_left_out_of_its_batch_and_named",
    "ddp_backend": "distributed/test_two_processes.py::test_there_really_are_as_many_processes",
    "ddp_find_unused_parameters": "distributed/test_two_processes.py::test_it_is_the_run_of_one_process",
    "deepspeed": "distributed/test_two_processes.py::test_it_is_the_run_of_one_process",
    "encoder_cache": "data/test_encoded_images.py::test_rewards_train_the_same_captioner_from_encoded_images",
    "eval_on_start": "training/test_evaluating.py::test_an_evaluation_at_the_start_stays_asked_for_after_an_error",
    "eval_strategy": "training/test_caption_trainer.py::test_evaluation_within_training_does_not_change_it",
    "fast_paths": "fast/test_fast.py::test_a_training_without_them_is_the_same_training",
    "fp16": "training/test_settings.py::test_fp16_on_a_cpu_is_float32",
    "full_determinism": "training/test_settings.py::test_a_step_is_possible_by_deterministic_algorithms",
    "generation_config": "training/test_evaluating.py::test_a_generation_config_of_the_settings_is_the_captioners",
    "generation_max_length": "training/test_evaluating.py::test_settings_of_generation_rule_captions",
    "generation_num_beams": "training/test_evaluating.py::test_settings_of_generation_rule_captions",
    "gradient_accumulation_steps": "test_trainer.py::test_accumulating_four_batches_of_one_is_one_batch_of_four",
    "gradient_checkpointing": "end_to_end/test_trainer_options.py::test_the_encoder_is_checkpointed_too",
    "gradient_checkpointing_kwargs": "end_to_end/test_trainer_options.py::test_the_encoder_is_checkpointed_too",
    "greater_is_better": "training/test_alarms.py::test_the_best_checkpoint_of_any_metric_is_restored",
    "group_by_length": "training/test_settings.py::test_rows_have_one_order",
    "hub_always_push": "hub/test_pushes.py::test_every_save_is_a_commit_of_model_and_card",
    "hub_model_id": "hub/test_pushes.py::test_every_save_is_a_commit_of_model_and_card",
    "hub_private_repo": "hub/test_transfer.py::test_a_private_repository_is_for_nobody_else",
    "hub_revision": "hub/test_transfer.py::test_a_push_to_a_branch_leaves_main_alone",
    "hub_strategy": "hub/test_pushes.py::test_a_run_goes_on_exactly_from_what_was_pushed_of_a_checkpoint",
    "hub_token": "faults/test_safety.py::test_a_token_is_in_nothing_that_a_run_leaves_or_says",
    "length_column_name": "training/test_settings.py::test_rows_have_one_order",
    "load_best_model_at_end": "training/test_alarms.py::test_the_best_checkpoint_of_any_metric_is_restored",
    "log_completions": "training/test_step_log.py::test_a_log_line_shows_what_the_last_step_wrote_and_earned",
    "max_grad_norm": "end_to_end/test_trainer_options.py::test_a_clipped_step_has_the_length_that_was_asked_for",
    "metric_for_best_model": "training/test_alarms.py::test_the_best_checkpoint_of_any_metric_is_restored",
    "num_completions_to_print": "training/test_step_log.py::test_only_so_many_completions_are_printed",
    "optim": "distributed/test_two_processes.py::test_an_optimiser_that_deepspeed_would_replace_is_refused",
    "output_dir": "training/test_resumable.py::test_a_resumed_run_is_the_same_run_to_the_bit",
    "per_device_eval_batch_size": "training/test_caption_trainer.py::"
    "test_captions_do_not_depend_on_the_batch_they_are_written_in",
    "per_device_train_batch_size": "training/test_fit.py::test_a_batch_larger_than_the_data_is_a_clear_error",
    "pool_other_processes": "distributed/test_two_processes.py::test_both_remember_the_same_texts_and_images",
    "push_to_hub": "hub/test_pushes.py::test_every_save_is_a_commit_of_model_and_card",
    "remove_unused_columns": "test_config.py::test_what_contradicts_itself_is_an_error",
    "resume_from_checkpoint": "files/test_checkpoints.py::test_a_path_is_taken_as_it_is",
    "save_strategy": "training/test_alarms.py::test_the_best_checkpoint_of_any_metric_is_restored",
    "save_total_limit": "files/test_checkpoints.py::test_the_oldest_are_removed_but_never_the_newest_nor_the_best",
    "skip_memory_metrics": "training/test_evaluating.py::test_an_evaluation_measures_time_and_memory",
    "train_sampling_strategy": "training/test_settings.py::test_rows_have_one_order",
    "use_cpu": "distributed/test_two_processes.py::test_there_really_are_as_many_processes",
}  # fmt: skip

# What Trainer and Accelerate do by themselves, in code that is not replaced here.
OPTIMISER, LOOP, LOG = "the optimiser and its schedule", "Trainer's loop over steps", "the log and its trackers"
LOADER, SAVES, LAUNCH = "the data loader", "what a checkpoint holds", "processes and devices"
OLD, SCRIPT = "the old name of another setting", "no Trainer reads it: a flag for scripts"
PARENTS = {
    **dict.fromkeys(
        ("adafactor", "adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "lr_scheduler_kwargs",
         "lr_scheduler_type", "optim_args", "optim_target_modules", "warmup_ratio", "warmup_steps", "weight_decay"),
        OPTIMISER,
    ),
    **dict.fromkeys(
        ("debug", "eval_delay", "eval_steps", "max_steps", "num_train_epochs", "save_steps",
         "torch_empty_cache_steps"),
        LOOP,
    ),
    **dict.fromkeys(
        ("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "logging_dir", "logging_first_step",
         "logging_nan_inf_filter", "logging_steps", "logging_strategy", "project", "report_to", "run_name",
         "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
        LOG,
    ),
    **dict.fromkeys(
        ("dataloader_in_order", "dataloader_multiprocessing_context", "dataloader_persistent_workers",
         "dataloader_pin_memory", "dataloader_prefetch_factor", "ignore_data_skip"),
        LOADER,
    ),
    **dict.fromkeys(
        ("restore_callback_states_from_checkpoint", "save_on_each_node", "save_only_model", "save_safetensors"), SAVES
    ),
    **dict.fromkeys(
        ("_n_gpu", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_static_graph", "ddp_timeout", "fp16_opt_level",
         "half_precision_backend", "local_rank", "mp_parameters", "tf32", "tpu_metrics_debug", "tpu_num_cores"),
        LAUNCH,
    ),
    **dict.fromkeys(
        ("fp16_backend", "no_cuda", "per_gpu_eval_batch_size", "per_gpu_train_batch_size", "push_to_hub_model_id",
         "push_to_hub_organization", "push_to_hub_token", "use_mps_device"),
        OLD,
    ),
    **dict.fromkeys(("do_eval", "do_predict", "do_train", "overwrite_output_dir"), SCRIPT),
    **dict.fromkeys(
        ("fsdp_config", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"), "no fsdp, as it is refused"
    ),
    "average_tokens_across_devices": "the loss is a mean over captions, of all devices in any case",
    "predict_with_generate": "captions are generated in any case",
    "ray_scope": "belongs to hyperparameter_search, which fails without a model_init",
}  # fmt: skip

# A value that is not the default, for each setting that is refused.
OTHERS = {
    "eval_accumulation_steps": 2,
    "eval_do_concat_batches": False,
    "fsdp": "full_shard",
    "include_for_metrics": ["inputs"],
    "include_num_input_tokens_seen": "all",
    "label_names": ["captions"],
    "label_smoothing_factor": 0.1,
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "parallelism_config": "any",
    "past_index": 0,
    "torch_compile_backend": "inductor",
    "torch_compile_mode": "default",
    "torchdynamo": "inductor",
}
FIELDS = {field.name: field for field in dataclasses.fields(RLCaptionConfig)}


def test_every_setting_is_known():
    """A setting that a new transformers brings fails here, by its name: find out what it does and where it belongs."""
    known = [*CHANGES_A_STEP, *SHOWN_BY, *PARENTS, *REFUSED]
    assert sorted(FIELDS.keys() - set(known)) == []
    assert len(known) == len(set(known))
    parents = {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    ours = FIELDS.keys() - parents
    assert sorted(ours - CHANGES_A_STEP.keys() - SHOWN_BY.keys()) == []


@pytest.mark.parametrize("test", sorted(set(SHOWN_BY.values())))
def test_the_tests_that_are_named_exist(test):
    file, name = test.split("::")
    assert f"def {name}(" in (TESTS / file).read_text()


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & FIELDS.keys()))
def test_what_would_be_ignored_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name}=.* is not supported; leave it at .*\. \w"):
        RLCaptionConfig(**{name: OTHERS.get(name, True)})


@pytest.mark.parametrize(
    ("variable", "value"), [("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")]
)
def test_a_launcher_may_not_set_it_either(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"The launcher set {variable}={value}, which is not supported"):
        RLCaptionConfig()


@pytest.mark.filterwarnings("ignore:.*is deprecated")  # the parent's own old names, which it writes too
def test_defaults_are_never_refused():
    config = RLCaptionConfig()
    RLCaptionConfig(**RLCaptionConfig(**config.to_dict()).to_dict())
    dataclasses.replace(config)
    parser = HfArgumentParser((RLCaptionConfig,))
    parser.parse_args_into_dataclasses([])
    parser.parse_dict(config.to_dict(), allow_extra_keys=True)
    RLCaptionConfig(label_names=["labels"], accelerator_config=dataclasses.asdict(config.accelerator_config))


@pytest.mark.parametrize("setting", [{"split_batches": True}, {"dispatch_batches": True}, {"even_batches": False}])
def test_batches_are_made_by_every_process(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"accelerator_config: {name}={value} is not supported; leave it at"):
        RLCaptionConfig(accelerator_config=setting)
    RLCaptionConfig(accelerator_config={"use_seedable_sampler": False, "dispatch_batches": False})


def figures(make_trainer, folder, **settings):
    """Losses and log of two steps, without times and memory, and the encoder as they leave it."""
    trainer = make_trainer(folder, max_steps=2, **settings)
    trainer.train()
    log = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/", "train_"))}
           for line in trainer.state.log_history]  # fmt: skip
    return trainer.step_losses, log, sum(float(p.detach().abs().sum()) for p in trainer.model.encoder.parameters())


@pytest.fixture(scope="module")
def usual():
    """Figures of runs without the setting in question, by what else is set."""
    return {}


@pytest.mark.parametrize("name", sorted(CHANGES_A_STEP))
def test_a_setting_changes_the_steps(make_trainer, tmp_path, usual, name):
    rest, value = CHANGES_A_STEP[name]
    key = repr(rest)
    if key not in usual:
        usual[key] = figures(make_trainer, tmp_path / "usual", **rest)
    assert value != FIELDS[name].default
    assert figures(make_trainer, tmp_path / "other", **rest, **{name: value}) != usual[key]


def test_a_step_is_possible_by_deterministic_algorithms(make_trainer, tmp_path):
    try:
        first, second = (figures(make_trainer, tmp_path / run, full_determinism=True) for run in "ab")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert first == second


def by_length():
    return {"train_sampling_strategy": "group_by_length"} if "train_sampling_strategy" in FIELDS else {
        "group_by_length": True
    }  # fmt: skip


def test_rows_have_one_order(make_trainer):
    with pytest.raises(ValueError, match=r"group_by_length needs the column 'length' \(length_column_name\)"):
        make_trainer(**by_length())
    with pytest.raises(ValueError, match="group_by_length and hard_batches both determine the order of the images"):
        make_trainer(**by_length(), hard_batches=True)
    dataset = tiny.scenes()
    dataset = dataset.add_column("words", list(range(len(dataset))))
    trainer = make_trainer(**by_length(), length_column_name="words", dataset=dataset, eval_dataset=tiny.scenes(3),
                           caption_metrics=lambda captions, _: {"n": len(captions)})  # fmt: skip
    first = next(iter(trainer.get_train_dataloader()))["columns"]["image_id"][0]
    assert first == dataset[-1]["image_id"]  # the longest of all comes first
    assert trainer.evaluate()["eval_n"] == 3


METRICS = {"caption_metrics": hf_distinct.caption_metrics}
STEPS = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_strategy": "epoch", **METRICS}, "eval_strategy=epoch needs eval_dataset"),
        ({"eval_strategy": "epoch", "eval_dataset": tiny.scenes(2)}, "eval_strategy=epoch needs caption_metrics"),
        ({"eval_on_start": True, "eval_dataset": tiny.scenes(2)}, "eval_on_start needs caption_metrics"),
        ({"eval_dataset": {}, **METRICS}, "eval_dataset is an empty dict"),
        (
            {"load_best_model_at_end": True, "metric_for_best_model": "CIDEr-D"},
            "load_best_model_at_end needs evaluations: set eval_strategy",
        ),
        (
            {"save_strategy": "best", "metric_for_best_model": "CIDEr-D"},
            "save_strategy=best needs evaluations: set eval_strategy",
        ),
        (
            {**STEPS, "load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_dataset": tiny.scenes(2),
             **METRICS},
            "metric_for_best_model='loss' is not computed by hf_distinct.caption_metrics, which returns CIDEr-D",
        ),
        (
            {**STEPS, "metric_for_best_model": "CIDEr-D", "eval_dataset": {"a": tiny.scenes(2)}, **METRICS},
            "metric_for_best_model='CIDEr-D' belongs to none of the datasets in eval_dataset: start it with the name "
            "of one, as in a_CIDEr-D",
        ),
        ({"generation_max_length": 18}, "generation_max_length=18 must be between 2 and 17: the decoder has 16"),
        ({"generation_max_length": 1}, "generation_max_length=1 must be between 2 and 17"),
    ],
)  # fmt: skip
def test_what_would_fail_later_fails_at_construction(make_trainer, settings, message):
    with pytest.raises(ValueError) as caught:
        make_trainer(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {**STEPS, "metric_for_best_model": "a_CIDEr-D", "eval_dataset": DatasetDict({"a": tiny.scenes(2)}), **METRICS},
        {**STEPS, "metric_for_best_model": "eval_CIDEr-D", "eval_dataset": tiny.scenes(2), **METRICS},
        {**STEPS, "metric_for_best_model": "own", "eval_dataset": tiny.scenes(2), "caption_metrics": len},
        {"metric_for_best_model": "own", "generation_max_length": 17},
    ],
)
def test_what_fits_has_no_problem(settings):
    given = {name: settings.pop(name, None) for name in ("eval_dataset", "caption_metrics")}
    found = settings_problems(RLCaptionConfig(**settings), **given, train_columns=["image"])
    assert list(found) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rollouts": "beam", "temperature": 0.7}, "temperature=0.7 has no effect with rollouts=beam."),
        ({"num_beams": 3}, "num_beams=3 has no effect with rollouts=sample."),
        ({"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2 has no effect with rollouts=sample."),
        ({"neighbour_first_rank": 4}, "neighbour_first_rank=4 has no effect with pool_neighbours=0."),
        ({"discriminator_weight": 0, "discriminator_lr": 1e-3}, "discriminator_lr=0.001 has no effect with"),
        ({"wtf_weight": 0, "wtf_policy": "raw"}, "wtf_policy=raw has no effect with wtf_weight=0."),
        ({"alarms": "off", "alarm_cider_floor": 0.5}, "alarm_cider_floor=0.5 has no effect with alarms=off."),
        ({"fp16": True}, "fp16=True has no effect on a CPU, which trains in float32."),
        ({"neighbour_first_rank": 4, "hard_batches": True}, None),
        ({"rollouts": "beam", "num_beams": 3}, None),
        ({"temperature": 0.7}, None),
    ],
)
def test_settings_that_do_nothing_beside_another_are_told(make_trainer, caplog, settings, message):
    make_trainer(num_rollouts=None, **settings)
    told = [each.getMessage() for each in caplog.records if "has no effect" in each.getMessage()]
    assert len(told) == (message is not None) and (message or "") in " ".join(told)


def test_fp16_on_a_cpu_is_float32(make_trainer, tmp_path):
    """Which is told: see the settings that do nothing."""
    losses = []
    for half in (False, True):
        trainer = make_trainer(tmp_path / str(half), max_steps=1, fp16=half)
        trainer.train()
        losses.append(trainer.step_losses)
    assert losses[0] == losses[1]
