"""What all recipes hold to.

Every setting acts, or is refused by name where it cannot act: none is ignored in silence. A second run in the same
folder is refused at its start, before it loads or embeds anything.
"""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import forked
import pytest

from hf_distinct.files import run_lock
from hf_distinct.runs import building
from hf_distinct.runs.dataset_settings import DatasetSettings

RECIPES = Path(__file__).parents[2] / "recipes"
FUTURE = "from __future__ import annotations\n"
COMMON = {each.name for each in dataclasses.fields(DatasetSettings)}

# Of each recipe: settings that act whatever the others are; and of the others, each with a value, the settings beside
# which they cannot act, and are refused.
ALWAYS = {
    "warm_up": {
        "model_name_or_path", "freeze_encoder", "captions_per_image", "drop_images", "max_caption_length", "encoder",
        "decoder", "validation_size", "early_stopping_patience",
    },
    "distill": {
        "teacher", "teacher_weights", "encoder_config", "crop_size", "whole_epochs", "hint_weight", "validation_size",
    },
    "train_clip": {
        "output_dir", "model", "spread_positions", "hard_negatives", "max_steps", "batch_size", "lr", "weight_decay",
        "eval_steps", "seed", "image_frozen_steps", "text_frozen_steps", "keep_best", "num_workers",
        "bf16", "resume_from_checkpoint", "captions_per_image",
    },
    "mine": {
        "scorer", "output_dir", "batch_size", "num_workers", "ddp_timeout", "num_neighbours", "first_rank",
        "min_similarity", "max_similarity", "via", "search",
    },
    "evaluate_captions": {
        "model", "captions", "references", "output_dir", "test_size", "train_captions", "language_model",
        "java_metrics", "resamples", "grammar",
    },
    "train_grammar": {"output_dir", "epochs", "batch_size", "learning_rate", "seed"},
    "caption": {
        "pictures", "model", "output_dir", "output_file", "num_samples", "guidance", "batch_size", "num_workers",
        "ddp_timeout",
    },
    "ablation": {"plan", "output_dir", "seeds", "only", "split", "jobs"},
}  # fmt: skip
PICTURES = {"dataset": "pictures"}
OURS = {"captions": ["ours.json"]}
REFERENCES = {**OURS, "references": "references.json"}
REFUSED: dict[str, list[tuple[str, Any, dict[str, Any]]]] = {
    "warm_up": [
        ("train_size", 9, PICTURES),
        ("caption_style", "full", PICTURES),
        ("model_type", "blip", {"model_name_or_path": "y"}),
        ("encoder", "x", {"model_type": "blip"}),
        ("decoder", "x", {"model_type": "blip"}),
        ("encoder", "x", {"model_name_or_path": "y"}),
        ("decoder", "x", {"model_name_or_path": "y"}),
        ("encoder_config", "{}", {"model_name_or_path": "y"}),
        ("encoder_config", "{}", {"encoder": "y"}),
        ("decoder_layers", 3, {"model_name_or_path": "y"}),
        ("decoder_layers", 3, {"decoder": "y"}),
        ("decoder_width", 64, {"decoder": "y"}),
        ("decoder_dropout", 0.1, {"decoder": "y"}),
        ("tokenizer", "x", {"decoder": "y"}),
        ("min_word_count", 2, {"decoder": "y"}),
        ("min_word_count", 2, {"tokenizer": "y"}),
        ("encoder_learning_rate", 1e-4, {"freeze_encoder": True}),
        ("encoder_cache", "x", {}),
        ("augment", True, {"freeze_encoder": True, "encoder_cache": "x"}),
    ],
    "distill": [],
    "train_clip": [
        ("train_size", 9, PICTURES),
        ("caption_style", "full", PICTURES),
        ("curriculum_steps", 9, PICTURES),
        ("curriculum_nouns", 9, PICTURES),
        ("curriculum_nouns", 9, {}),
        ("vision_cfg", "{}", {"model": "x"}),
        ("embed_dim", 9, {"model": "x"}),
        ("negative_weight", 9.0, {}),
        ("kind_weights", [1.0] * 6, {}),
        ("drill", 0.1, {}),
        ("vision_cfg", "{}", {"image_tower": "x"}),
        ("image_tower", "x", {"model": "x"}),
        ("text_tower", "x", {"model": "x"}),
        ("image_weights", "x", {}),
        ("text_tower", "x", {}),
        ("projection", "mlp", {}),
        ("image_dropout", 0.1, {}),
        ("tower_lr", 0.1, {}),
        ("cache_dir", "x", {}),
        ("image_thawed_stages", 1, {}),
        ("mirror", True, {"cached_views": 1, "image_frozen_steps": -1}),
        ("augmentation", "{}", {"cached_views": 1, "image_frozen_steps": -1}),
        ("augmentation", "{}", {"cached_views": 2, "image_frozen_steps": -1, "mirror": True}),
        ("cached_views", 1, {}),
        ("cached_captions", True, {}),
        ("patience", 3, {}),
    ],
    "mine": [
        ("train_size", 9, {**PICTURES, "scorer": "x"}),
        ("scenes_seed", 9, {**PICTURES, "scorer": "x"}),
        ("min_recall", 0.5, {"search": "exact"}),
    ],
    "evaluate_captions": [
        ("scenes_seed", 9, {**PICTURES, **OURS}),
        ("scenes_seed", 9, REFERENCES),
        ("split", "train", REFERENCES),
        ("scorer", "x", REFERENCES),
        ("judge", "x", REFERENCES),
        ("clip_prompt", "x", REFERENCES),
        ("clip_prompt", "x", {**PICTURES, **OURS}),
        ("num_neighbours", 9, REFERENCES),
        ("num_neighbours", 9, {**OURS, "scorer": "", "judge": ""}),
        ("guidance", [2.0], OURS),
        ("best_of", [2], OURS),
        ("best_of", [2], {**PICTURES, "model": ["x"]}),
        ("num_beams", [5], OURS),
        ("seed", 9, OURS),
        ("temperature", 0.5, {**PICTURES, "model": ["x"]}),
        ("batch_size", 9, OURS),
        ("references", "x", {"model": ["x"]}),
        ("references", "x", {**PICTURES, **OURS}),
    ],
    "caption": [
        ("seed", 9, {"pictures": "x"}),
        ("rerank_with", "x", {"pictures": "x"}),
    ],
    "ablation": [],
    "train_grammar": [],
}  # fmt: skip
IMPOSSIBLE: dict[str, list[tuple[str, Any]]] = {
    "warm_up": [
        ("drop_images", 1.0), ("train_size", 0), ("captions_per_image", 0), ("max_caption_length", 1),
        ("decoder_layers", 0), ("decoder_width", 0), ("decoder_width", 100), ("decoder_dropout", 1.0),
        ("min_word_count", 0), ("validation_size", 0), ("early_stopping_patience", 0), ("encoder_learning_rate", 0.0),
    ],
    "distill": [
        ("dataset", "emoji_scenes"), ("teacher", None), ("crop_size", 8), ("whole_epochs", -1), ("hint_weight", -1.0),
        ("validation_size", 1),
    ],
    "train_clip": [
        ("max_steps", 0), ("batch_size", 1), ("eval_steps", 0), ("train_size", 0), ("drill", 2.0),
        ("lr", float("nan")), ("curriculum_steps", 99999), ("tower_lr", -1.0), ("image_dropout", 2.0),
        ("image_frozen_steps", -2), ("text_frozen_steps", 9999), ("num_workers", -1), ("augmentation", "[]"),
        ("augmentation", "{"), ("augmentation", '{"scales": 1}'), ("patience", -1), ("cached_views", -1),
        ("captions_per_image", 0),
    ],
    "mine": [("batch_size", 0), ("num_workers", -1), ("train_size", 0)],
    "evaluate_captions": [("test_size", 0), ("resamples", 0), ("batch_size", 0), ("java_metrics", ["BLEU"])],
    "caption": [
        ("num_samples", -1), ("batch_size", 0), ("num_workers", -1), ("guidance", 0.0), ("output_file", "a.csv"),
        ("output_file", "a/b.jsonl"),
    ],
    "train_grammar": [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0)],
    "ablation": [("jobs", 0), ("seeds", []), ("seeds", [1, 1])],
}  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {
    "evaluate_captions": OURS, "caption": {"pictures": "x"}, "distill": {"dataset": "pictures", "teacher": "x"},
}  # fmt: skip


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, *case, id=f"{name}-{case[0]}-{i}") for name in table for i, case in enumerate(table[name])
    ]


@pytest.mark.parametrize("name", ALWAYS)
def test_every_setting_is_in_a_list(name: str) -> None:
    own = {each.name for each in dataclasses.fields(forked.module(name).Settings)}
    assert own - COMMON == ALWAYS[name] | {case[0] for case in REFUSED[name]}


@pytest.mark.parametrize("name", ALWAYS)
def test_every_setting_is_read(name: str) -> None:
    """By more than the checks of settings, which read those that they refuse."""
    files = [RECIPES / f"{name}.py", *([Path(building.__file__)] if name == "warm_up" else [])]
    tree = ast.parse("\n".join(path.read_text(encoding="utf-8").replace(FUTURE, "") for path in files))
    checks = {each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef) and each.name == "problems"}
    checked = {id(node) for check in checks for node in ast.walk(check)}
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in checked}
    by_models = {"scorer", "judge"}  # `DatasetSettings.models` reads these
    assert {each.name for each in dataclasses.fields(forked.module(name).Settings)} - COMMON - by_models <= read


@pytest.mark.parametrize(("name", "setting", "value", "beside"), cases(REFUSED))
def test_what_cannot_act_is_refused_by_name(name: str, setting: str, value: Any, beside: dict[str, Any]) -> None:
    settings = forked.module(name).Settings
    settings(**beside) if setting != "references" else None
    with pytest.raises(ValueError, match=rf"\b{setting}\b"):
        settings(**{**beside, setting: value})


@pytest.mark.parametrize(("name", "setting", "value"), cases(IMPOSSIBLE))
def test_what_cannot_be_is_refused_by_name(name: str, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        forked.module(name).Settings(**{**NEEDED.get(name, {}), setting: value})


MISSING = "no/such/model"
COMMANDS = {
    "train.py": ["--model_name_or_path", MISSING],
    "warm_up.py": ["--model_name_or_path", MISSING],
    "distill.py": ["--dataset", "no/such/file", "--teacher", MISSING],
    "train_clip.py": ["--model", MISSING],
    "mine.py": ["--scorer", MISSING],
    "evaluate_captions.py": ["--model", MISSING],
    "caption.py": ["--pictures", "no/such/folder", "--model", MISSING],
    "ablation.py": [],
}


@pytest.mark.parametrize("recipe", COMMANDS)
def test_a_second_run_is_refused_at_once(tmp_path, recipe):
    run_lock.claim(tmp_path)
    try:
        done = forked.run(recipe, "--output_dir", tmp_path, *COMMANDS[recipe], fails=True)
    finally:
        run_lock.release(tmp_path)
    assert f"error: output_dir {tmp_path}: another run is using this folder" in done.stderr
    assert not list(tmp_path.iterdir())
