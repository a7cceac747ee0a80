"""Every setting of recipes/train.py does something, or is refused by name; without a file, defaults fit the data."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import ModuleType
from typing import Any

import forked
import numpy as np
import pytest
import tiny
from datasets import Dataset

from hf_distinct import ClipScorer, RLCaptionConfig, emoji_scenes
from hf_distinct.data.neighbours import FILE, Neighbours
from hf_distinct.gallery import Gallery
from hf_distinct.runs.arguments import parse_settings

EMOJI = {"train_size": 12, "test_size": 4, "eval_size": 3}
# Settings that show in what is loaded: with which others, and a value that makes a difference.
LOADED: list[tuple[str, dict[str, Any], Any]] = [
    ("train_size", EMOJI, 9),
    ("test_size", EMOJI, 3),
    ("eval_size", EMOJI, 2),
    ("scenes_seed", EMOJI, 1),
    ("split", EMOJI, "validation"),
    ("dataset", {}, "PICTURES"),
    ("test_size", {"dataset": "PICTURES"}, 2),
    ("eval_size", {"dataset": "PICTURES"}, 2),
    ("split", {"dataset": "PICTURES"}, "validation"),
    ("caption_column", {"dataset": "PICTURES"}, "other"),
    ("image_root", {"dataset": "PARQUET"}, "PICTURES"),
    ("image_column", {"dataset": "PARQUET", "image_root": "PICTURES"}, "mirrored"),
]
# Beside what, and what is said then.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("train_size", {"dataset": "PICTURES", "train_size": 4000}, "train_size chooses emoji scenes"),
    ("scenes_seed", {"dataset": "PICTURES", "scenes_seed": 0}, "scenes_seed chooses emoji scenes"),
    ("image_root", {"image_root": "PICTURES"}, "image_root has no effect on emoji scenes"),
    ("image_root", {"dataset": "PICTURES", "image_root": "PICTURES"}, "leave out image_root"),
    ("image_column", {"image_column": "image"}, "image_column has no effect on emoji scenes"),
    ("image_column", {"dataset": "PICTURES", "image_column": "image"}, "leave out image_column"),
    ("caption_column", {"caption_column": "text"}, "caption_column has no effect on emoji scenes"),
    ("dataset_config", {"dataset_config": "en"}, "dataset_config has no effect on emoji scenes"),
    ("eval_size", {"dataset": "PICTURES", "eval_size": 1, "eval_strategy": "epoch"}, "eval_size=1 must be at least 2"),
    ("test_size", {"test_size": 0}, "test_size=0 must be at least 2"),
    ("train_size", {"train_size": -4}, "train_size=-4 must be at least 2"),
    ("ceiling", {"ceiling": 1}, "ceiling=1 must be at least 2"),
    ("ceiling", {"ceiling": 4, "rollouts": "beam"}, "cannot use beam search: leave out --rollouts beam"),
    ("strict", {"dataset": "BROKEN", "strict": True}, "missing image file"),
    ("judge", {"dataset": "PICTURES", "metric_for_best_model": "judge/t2i_R@1"}, "that measures it: set --judge"),
    ("model_name_or_path", {"dataset": "PICTURES", "scorer": "a:b"}, " needs --model_name_or_path"),
    ("scorer", {"dataset": "PICTURES", "model_name_or_path": "a/b"}, " needs --scorer"),
]
# Those that other tests show: what mine.py left (test_mine.py), and what is said on the card (test_own_pictures.py).
SHOWN_ELSEWHERE = {"mined", "data_license", "emissions"}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return forked.module("train")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders and files of pictures, by the names that the cases above give them."""
    root = tmp_path_factory.mktemp("data")
    rows = emoji_scenes("train", 24, seed=2)
    lines = []
    for number, row in enumerate(rows):
        row["image"].save(root / f"{number}.png")
        line = {"file_name": f"{number}.png", "captions": row["captions"], "other": row["captions"][:1]}
        lines.append(line | {"split": ("train", "validation", "test")[number % 3]})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    table = {"image": [f"{n}.png" for n in range(24)], "mirrored": [f"{23 - n}.png" for n in range(24)]}
    parquet = root.parent / "captions.parquet"
    Dataset.from_dict({**table, "captions": rows["captions"][:]}).to_parquet(str(parquet))
    broken = root / "broken"
    broken.mkdir()
    (broken / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*lines[:3], {**lines[3], "file_name": "no"}])))
    for number in range(3):
        (broken / f"{number}.png").write_bytes((root / f"{number}.png").read_bytes())
    return {"PICTURES": str(root), "PARQUET": str(parquet), "BROKEN": str(broken)}


def loaded(recipe: Any, settings: dict[str, Any], places: dict[str, str]) -> str:
    """What training and measuring would see."""
    settings = {name: places.get(value, value) for name, value in settings.items()}
    train, validation, galleries = recipe.load_data(recipe.Settings(**settings))
    return repr(
        [
            (name, part["captions"][:], [image.tobytes() for image in part["image"]])
            for name, part in {"train": train, "validation": validation, **galleries}.items()
        ]
    )


@pytest.mark.parametrize(("name", "others", "value"), LOADED)
def test_a_setting_makes_a_difference(recipe, places, name, others, value):
    if others == {"dataset": "PARQUET"}:  # without the folder, no picture is found
        with pytest.raises(ValueError, match="none of the 24 images is usable|missing image file"):
            loaded(recipe, others, places)
        assert loaded(recipe, {**others, name: value}, places)
    else:
        base = others or EMOJI
        changed = {**others, name: value} if others else {name: value}
        assert loaded(recipe, changed, places) != loaded(recipe, base, places)


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED)
def test_a_setting_that_does_nothing_is_refused(
    recipe, places, monkeypatch, capsys, tmp_path, name, settings, message
):
    settings = {name: places.get(str(value), value) for name, value in settings.items()}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"])
    with pytest.raises((SystemExit, ValueError)) as ended:
        if name == "strict" or message.startswith("leave out"):  # known when the data is read
            loaded(recipe, settings, places)
        else:
            recipe.main()
    assert message in str(ended.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()  # it is known before anything is done


def test_all_that_does_not_fit_is_said_before_anything_is_embedded(recipe, places, monkeypatch, tiny_models, tmp_path):
    words = {
        "dataset": places["PICTURES"], "model_name_or_path": tiny_models / "captioner", "reward": "cidr",
        "scorer": tiny_models / "scorer", "output_dir": tmp_path, "max_new_tokens": 50, "use_cpu": "true",
        "per_device_train_batch_size": 64,
    }  # fmt: skip
    argv = ["train.py", *(str(word) for name, value in words.items() for word in (f"--{name}", value))]
    monkeypatch.setattr(sys, "argv", argv)
    embedded = []
    monkeypatch.setattr(recipe, "embed_once", lambda *given: embedded.append(given))
    with pytest.raises(ValueError, match=r"(?s)3 problems.*16 positions.*'cidr' is.*8 training images"):
        recipe.main()
    assert embedded == []


def test_an_eval_size_without_evaluations_is_a_warning(recipe, tmp_path, monkeypatch, caplog):
    (tmp_path / "out").write_text("no folder")  # which ends the run just after that
    words = ["--eval_size", "50", "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    for strategy, warned in ((["--eval_strategy", "no"], True), (["--eval_strategy", "epoch"], False)):
        caplog.clear()
        monkeypatch.setattr(sys, "argv", ["train.py", *words, *strategy])
        with pytest.raises(ValueError, match="cannot be written"):
            recipe.main()
        assert ("--eval_size 50 has no effect without --eval_strategy" in caplog.text) == warned


def test_a_ceiling_is_printed_and_nothing_is_trained(recipe, places, monkeypatch, tiny_models, tmp_path, capsys):
    words = {
        "dataset": places["PICTURES"], "model_name_or_path": tiny_models / "captioner", "output_dir": tmp_path / "out",
        "scorer": tiny_models / "scorer", "judge": tiny_models / "scorer", "max_new_tokens": 8, "use_cpu": "true",
        "ceiling": 3, "eval_size": 5, "per_device_train_batch_size": 2, "max_reference_length": 16,
    }  # fmt: skip
    argv = ["train.py", *(str(word) for name, value in words.items() for word in (f"--{name}", value))]
    monkeypatch.setattr(sys, "argv", argv)
    recipe.main()
    table = capsys.readouterr().out.splitlines()
    assert table[0].split("  ")[-4:] == ["people", "greedy", "a sample", "best of 3"]
    assert {"judge/t2i_R@1", "scorer/t2i_R@1", "CIDEr-D"} <= {line.split()[0] for line in table[2:-1]}
    assert table[-1].startswith("5 validation pictures, samples at temperature 0.7.")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_trained_scorer_is_measured_before_and_after(tiny_models, tmp_path):
    done = forked.run(
        "train.py", "--output_dir", tmp_path, "--model_name_or_path", tiny_models / "captioner", "--scorer",
        tiny_models / "scorer", "--judge", tiny_models / "scorer", "--train_size", 12, "--test_size", 4,
        "--per_device_train_batch_size", 4, "--max_steps", 2, "--pool_neighbours", 0, "--train_scorer", "text",
        "--scorer_lr", 0.1, "--use_cpu", "true",
    )  # fmt: skip
    found = json.loads((tmp_path / "scorer.json").read_text())
    before, after = found["before"], found["after"]
    assert before.keys() == after.keys() >= {"t2i_R@1", "prefers_truth/relation"} and before != after
    assert "prefers_truth/relation" in done.stdout
    assert ClipScorer(tmp_path / "scorer").embed_dim == 16


def test_every_setting_is_among_these(recipe):
    shown = {name for name, *_ in [*LOADED, *REFUSED]} | SHOWN_ELSEWHERE
    assert shown == {each.name for each in dataclasses.fields(recipe.Settings)}


def test_defaults_are_those_of_the_data(recipe):
    def told(*argv: str) -> tuple[Any, RLCaptionConfig]:
        return parse_settings(recipe.Settings, RLCaptionConfig, argv=argv, default_file=recipe.default_file)

    for argv in ([], ["--dataset", "emoji_scenes"]):
        settings, config = told(*argv)
        assert (config.max_steps, config.output_dir, config.pool_neighbours) == (300, "outputs/quickstart", 4)
        assert settings.drawn
    settings, config = told("--dataset", "captions.json", "--image_root", "images")
    assert not settings.drawn and (settings.scorer, settings.judge, settings.model_name_or_path) == (None, None, None)
    assert (config.output_dir, config.max_steps, config.num_train_epochs) == ("outputs/photographs", -1, 2)
    assert (config.temperature, config.baseline, config.memory_batches) == (0.7, "leave_one_out", 8)
    assert (config.reward_clamp, config.wtf_weight, config.reward_weights) == (4, 0.3, [1, 0.03])
    assert (config.pool_neighbours, config.max_reference_length) == (0, 50)


def test_ranks_that_were_not_mined_are_refused(recipe, tmp_path, monkeypatch):
    rows = np.zeros((2, 5), dtype=np.int64)
    Neighbours(rows, rows.astype(np.float32), np.zeros((2, 3), dtype=bool), 4).save(tmp_path / FILE)
    monkeypatch.setattr(recipe, "names_in", lambda *_: ("",))
    config = RLCaptionConfig(output_dir=str(tmp_path), neighbour_first_rank=2, use_cpu=True)
    with pytest.raises(ValueError, match="first_rank=2, but .* holds ranks 4 to 5. Leave the setting out, or mine"):
        recipe.take_mined(None, None, recipe.Settings(mined=str(tmp_path)), config)


def test_a_sheet_or_a_card_that_fails_costs_no_figures(recipe, tiny_models, tmp_path, monkeypatch, caplog):
    class NoCard:
        def write_card(self, *_, **__):
            raise RuntimeError("no card")

    def no_sheet(*_, **__):
        raise OSError("no font")

    monkeypatch.setattr(recipe, "write_contrast_sheet", no_sheet)
    rows = tiny.scenes(4)
    gallery = Gallery(rows, {"scorer": ClipScorer(str(tiny_models / "scorer"))})
    said = [own[0] for own in rows["captions"]]
    metrics = recipe.report(NoCard(), {"": gallery}, {"before": {"": said}, "after": {"": said}}, {}, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert json.loads((tmp_path / "captions.json").read_text())["after"][""] == said
    told = [record.getMessage() for record in caplog.records if "could not be made" in record.getMessage()]
    assert [each.split(":")[0] for each in told] == [
        "contrast.html could not be made", "The card README.md could not be made"
    ]  # fmt: skip


def test_a_captioner_is_not_trained_over_itself(recipe, tmp_path):
    config = RLCaptionConfig(output_dir=str(tmp_path), use_cpu=True)
    settings = recipe.Settings(model_name_or_path=str(tmp_path))
    assert any("would overwrite this model" in each for each in recipe.setting_problems(settings, config))
