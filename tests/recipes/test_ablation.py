"""The ablation as a person runs it: a small plan from nothing, and tables of runs that lie there already."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import forked
import pytest
import yaml
from PIL import Image

from hf_distinct import RLCaptionConfig, emoji_scenes
from hf_distinct.data.coco_results import read_coco_results
from hf_distinct.runs.arguments import parse_settings
from hf_distinct.runs.recorded_run import RecordedRun
from hf_distinct.scorer import shipped

PLANS = sorted((forked.RECIPES / "configs").rglob("ablation*.yaml"))
run = partial(forked.run, "ablation.py")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return forked.module("ablation")


def write_report(run: RecordedRun, judge: float, cider: float) -> None:
    run.folder.mkdir(parents=True)
    after = {"judge/t2i_R@1": judge, "CIDEr-D": cider}
    report = {"before": {"judge/t2i_R@1": 0.25, "CIDEr-D": 3.0}, "after": after, "people": {"judge/t2i_R@1": 0.2}}
    (run.folder / "metrics.json").write_text(json.dumps(report))
    said = {"image_id": {"": ["1"], "twins/": ["2"]}, **{when: {"": ["a"], "twins/": ["b"]} for when in report}}
    (run.folder / "captions.json").write_text(json.dumps(said))
    run.finish(run.made_by())


def test_rows_are_averaged_over_seeds_and_finished_runs_are_not_repeated(recipe: ModuleType, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text("others:\n  CLIP: {wtf_weight: 0}\nours:\n  full method: {}\n")
    ablation = recipe.Ablation(recipe.Settings(str(plan), str(out), seeds=[0, 1]))
    for row, values in {"full method": [(0.5, 1), (0.7, 3)], "CLIP": [(0.9, 1), (0.9, 1)]}.items():
        for seed, (judge, cider) in enumerate(values):
            write_report(ablation.trainings[row, seed], judge, cider)
    done = run(plan, "--output_dir", out, "--seeds", 0, 1)
    table = (out / "ablation.md").read_text()
    assert done.stdout.startswith(table)
    assert "| full method | 0.600 ± 0.141 | 2.000 ± 1.414 |" in table  # mean of .5 and .7; deviation sqrt(2 * .1^2)
    assert "| teacher forcing | 0.250 | 3.000 |" in table
    assert "| people | 0.200 |" in table
    # Half way between CLIP (1, .9) and teacher forcing (3, .25): .575 at 2; and 0.6 is reached at 3 - .35 / .325.
    assert "| full method | random | 0.600 | 0.575 | 2.000 | 1.923 |" in table
    found = json.loads((out / "ablation.json").read_text())
    assert found["full method"] == {"kind": "ours", "figures": {"judge/t2i_R@1": [0.5, 0.7], "CIDEr-D": [1, 3]}}
    assert found["CLIP"]["kind"] == "trained"
    assert Image.open(out / "frontier.png").width > 600 and "full method" in (out / "frontier.svg").read_text()

    # What was made by anything else is not reported: here, of the rows that are not run again.
    others = recipe.Ablation(recipe.Settings(str(plan), str(out), seeds=[0, 1], split="validation"))
    assert others.systems() == []
    plan.write_text("others:\n  CLIP: {wtf_weight: 0.5}\nours:\n  full method: {}\n")
    assert {each.name for each in recipe.Ablation(ablation.settings).systems()} == {
        "people", "teacher forcing", "full method"
    }  # fmt: skip


@pytest.mark.slow
def test_from_nothing_on_pictures_in_the_form_of_coco(tiny_models: Path, tmp_path: Path) -> None:
    images = []
    for number, row in enumerate(emoji_scenes("train", 30, seed=3)):
        row["image"].save(tmp_path / f"{number}.png")
        sentences = [{"raw": caption} for caption in row["captions"]]
        split = "test" if number < 8 else "val" if number < 12 else "train"
        images.append({"cocoid": number, "filename": f"{number}.png", "split": split, "sentences": sentences})
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    (tmp_path / "base.yaml").write_text(
        "max_steps: 1\nper_device_train_batch_size: 4\nnum_rollouts: 2\nuse_cpu: true\n"
    )
    clip = tiny_models / "scorer"
    models = {"model_name_or_path": tiny_models / "captioner", "scorer": clip, "judge": clip}
    data = {"dataset": tmp_path / "dataset_coco.json", "image_root": tmp_path}
    plan = {
        "base": "base.yaml",
        "settings": {name: str(value) for name, value in {**data, **models}.items()},
        "decoding": {"guidance": [2], "best_of": [2]},
        "dropped_pictures": {"drop_images": 0.5, "max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True},
        "ours": {"full / all": {}},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "out"
    run(tmp_path / "plan.yaml", "--output_dir", out, "--seeds", 4, "--jobs", 2)
    found = json.loads((out / "ablation.json").read_text())
    ways = ["guidance 2", "best of 2", "taught with dropped pictures", "taught with dropped pictures, guidance 2"]
    assert list(found) == ["people", "teacher forcing", *ways, "full / all"]
    assert all(len(system["figures"]["CIDEr-D"]) == 1 for system in found.values())
    files = {file.stem for file in (out / "captions" / "test").iterdir()}
    assert files == {"teacher forcing", *ways, "full   all"}
    said = json.loads((out / "full_-_all" / "seed4" / "captions.json").read_text())
    assert list(read_coco_results(out / "captions" / "test" / "full   all.json").values()) == said["after"][""]
    plain = out / "decoding" / "seed4" / "captioner" / "captions" / "captioner.json"
    for file in (plain, out / "captions" / "test" / "teacher forcing.json"):
        assert list(read_coco_results(file).values()) == said["before"][""]


def test_every_row_is_measured_by_beams_too(recipe: ModuleType, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(
        "settings: {dataset: elsewhere, model_name_or_path: mine}\nevaluation: {num_beams: [5], grammar: judge}\n"
        "decoding: {best_of: [4], temperature: 0.7}\nothers:\n  CLIP: {}\nours:\n  full method: {}\n"
    )
    settings = recipe.Settings(str(plan), str(out), seeds=[0, 1], dataset="photos.json", image_root="photos")
    ablation = recipe.Ablation(settings)
    runs = [*ablation.decodings.values(), *ablation.evaluations.values()]
    assert [len(part) for part in ablation.runs()] == [0, 2, 4, 4] and len(runs) == 6
    assert all(run.settings["dataset"] == "photos.json" and run.settings["grammar"] == "judge" for run in runs)
    first, second = ablation.decodings.values()
    assert (first.settings["num_beams"], first.settings["temperature"], first.settings["best_of"]) == ([5], 0.7, [4])
    assert "num_beams" not in second.settings and second.settings["seed"] == 1
    assert not any("best_of" in run.settings for run in ablation.evaluations.values())
    for (row, seed), training in ablation.trainings.items():
        write_report(training, judge=0.9, cider=9)
        assert ablation.evaluations[row, seed, ""].settings["model"] == str(training.folder)
    for place, each in enumerate(runs):
        each.folder.mkdir(parents=True)
        name = Path(each.settings["model"]).name
        people = {"people (one caption against the others)": {"judge/t2i_R@1": 0.3, "grammar": 0.95}}
        drawn = {f"{name} best of 4": {"judge/t2i_R@1": 0.6 + place}} if place < 2 else {}
        own = {name: {"judge/t2i_R@1": 0.1 * place, "grammar": 0.5}, f"{name} beams 5": {"judge/t2i_R@1": 0.2 * place}}
        (each.folder / "metrics.json").write_text(json.dumps({**own, **drawn, **people}))
        each.finish(each.made_by())
    found = {system.name: system.figures["judge/t2i_R@1"] for system in ablation.systems()}
    assert found == {
        "people": [0.3], "teacher forcing": [0.0], "teacher forcing, beams 5": [0.0, 0.2], "best of 4": [0.6, 1.6],
        "CLIP": pytest.approx([0.2, 0.3]), "CLIP, beams 5": pytest.approx([0.4, 0.6]),
        "full method": pytest.approx([0.4, 0.5]), "full method, beams 5": pytest.approx([0.8, 1.0]),
    }  # fmt: skip
    assert "| grammar |" in recipe.table(ablation.systems())


STOPPED = """
import os, runpy, signal, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import psutil
from hf_distinct.training.interruption import ended_from_inside
run_all, ended = runpy.run_path(sys.argv[1])["run_all"], []
def stop():
    while not psutil.Process().children():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
try:
    with ended_from_inside(), ThreadPoolExecutor(1) as pool:
        runs = [pool.submit(lambda: ended.append(subprocess.run(["sleep", "300"]).returncode)) for _ in range(2)]
        threading.Thread(target=stop).start()
        run_all(runs)
finally:
    print(ended, runs[1].cancelled())
"""


@pytest.mark.slow
def test_a_signal_ends_the_runs_that_are_at_work_and_begins_no_other() -> None:
    command = [sys.executable, "-c", STOPPED, str(forked.RECIPES / "ablation.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "[-15] True\n", "")


def test_what_is_wrong_is_named(recipe: ModuleType, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    for text, settings, told in [
        ("ours:\n  full method: {}\n", {"only": ["half a method"]}, "no row 'half a method'"),
        ("full method: {}\n", {}, "'full method' is not a section; use base, settings"),
        ("ours:\n  a: {}\nothers:\n  a: {}\n", {}, "`others` and `ours` both have a row 'a'"),
        ("ours:\n  a b: {}\n  a_b: {}\n", {}, "the rows 'a b' and 'a_b' would share a folder"),
        ("settings: {dataset: pictures}\n", {}, "`settings` must have model_name_or_path"),
        ("", {"seeds": [1, 1]}, "must be different numbers"),
        ("", {"jobs": 0}, "jobs=0 must be at least 1"),
    ]:
        plan.write_text(text)
        with pytest.raises(ValueError, match=told):
            recipe.Ablation(recipe.Settings(str(plan), str(tmp_path / "out"), **settings))
    plan.write_text("ours:\n  full method: {no_such_setting: 1}\n")
    error = run(plan, "--output_dir", tmp_path / "out", "--seeds", 0, fails=True).stderr
    assert "full method, seed 0: train.py ended with status" in error and "log.txt for the reason" in error


def test_all_begin_with_the_captioner_that_the_plan_names(recipe: ModuleType, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    sections = {"decoding": {"guidance": [2]}, "dropped_pictures": {"max_steps": 1}, "ours": {"row": {}}}
    for captioner in ("somebody/captioner", None):
        settings = {} if captioner is None else {"model_name_or_path": captioner}
        plan.write_text(yaml.safe_dump({"settings": settings, **sections}))
        ablation = recipe.Ablation(recipe.Settings(str(plan), str(tmp_path)))
        expected = captioner or shipped("captioner")
        assert ablation.drops[0].settings["model_name_or_path"] == expected
        assert ablation.decodings[0, "captioner", ""].settings["model"] == expected
        assert ablation.decodings[0, "dropped", ""].settings["model"] == str(ablation.drops[0].folder)


@pytest.mark.parametrize("file", PLANS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_run_of_a_plan_has_settings_that_its_recipe_takes(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path
) -> None:
    """Each command line is read as the recipe reads it, which then does nothing."""
    train, warm_up, evaluate = (forked.module(name) for name in ("train", "warm_up", "evaluate_captions"))
    kinds = {
        "train.py": (train.Settings, RLCaptionConfig),
        "warm_up.py": (warm_up.Settings, warm_up.Training),
        "evaluate_captions.py": (evaluate.Settings,),
    }
    read = []

    def take(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        name, default = Path(command[1]).name, train.default_file if command[1].endswith("train.py") else None
        parse_settings(*kinds[name], argv=command[2:], default_file=default)
        read.append(name)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", take)
    for part in recipe.Ablation(recipe.Settings(str(file), str(tmp_path))).runs():
        for each in part:
            each(threads=1)
    assert set(read) == set(kinds)
