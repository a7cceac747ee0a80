"""The ablation as a person runs it: a small plan from nothing, and tables of runs that lie there already."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import forked
import pytest
import yaml
from PIL import Image

from hf_distinct import emoji_scenes
from hf_distinct.data.coco_results import read_coco_results

PLANS = sorted((forked.RECIPES / "configs").glob("ablation*.yaml"))
run = partial(forked.run, "ablation.py")


def write_report(folder: Path, judge: float, cider: float) -> None:
    folder.mkdir(parents=True)
    after = {"judge/t2i_R@1": judge, "CIDEr-D": cider}
    report = {"before": {"judge/t2i_R@1": 0.25, "CIDEr-D": 3.0}, "after": after, "people": {"judge/t2i_R@1": 0.2}}
    (folder / "metrics.json").write_text(json.dumps(report))


def test_rows_are_averaged_over_seeds_and_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text("others:\n  CLIP: {wtf_weight: 0}\nours:\n  full method: {}\n")
    for row, values in {"full_method": [(0.5, 1), (0.7, 3)], "CLIP": [(0.9, 1), (0.9, 1)]}.items():
        for seed, (judge, cider) in enumerate(values):
            write_report(out / row / f"seed{seed}", judge, cider)
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


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("ours:\n  full method: {}\n")
    assert (
        "no row 'half a method'" in run(plan, "--output_dir", tmp_path, "--only", "half a method", fails=True).stderr
    )
    plan.write_text("full method: {}\n")
    assert "'full method' is none of base, settings" in run(plan, "--output_dir", tmp_path, fails=True).stderr
    plan.write_text("ours:\n  full method: {no_such_setting: 1}\n")
    error = run(plan, "--output_dir", tmp_path / "out", "--seeds", 0, fails=True).stderr
    assert "full method, seed 0: train.py ended with status" in error and "log.txt tells why" in error


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_plans_have_settings_that_exist(file: Path) -> None:
    from hf_distinct import RLCaptionConfig

    plan = yaml.safe_load(file.read_text())
    for settings in [*plan["others"].values(), *plan["ours"].values()]:
        names = set(settings) - {"scorer"}
        assert names <= set(RLCaptionConfig.__dataclass_fields__), names
