"""The settings by which recipes are told their pictures, and which models may speak of them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from hf_distinct.files.model_names import SHIPPED, is_shipped
from hf_distinct.runs.dataset_settings import DatasetSettings

NEEDED, OPTIONAL = {"model_name_or_path": "captioner", "scorer": "scorer"}, {"judge": "judge"}


@dataclass
class Settings(DatasetSettings):
    model_name_or_path: str | None = None
    scorer: str | None = None
    judge: str | None = None
    train_size: int = 40
    caption_style: str = "people"


def test_reads_the_splits_of_a_persons_pictures(tmp_path):
    names = ("train", "val", "test")
    rows = [{"file_name": f"{i}.png", "text": [f"picture {i}"], "split": name} for i, name in enumerate(names)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for i in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    splits = DatasetSettings(dataset=str(tmp_path), caption_column="text").load()
    assert splits["train"]["captions"][:] == [["picture 0"]]
    assert splits["test"]["captions"][:] == [["picture 2"]]


@pytest.mark.parametrize("name", ["image_root", "image_column", "caption_column", "dataset_config"])
def test_refuses_to_read_what_is_drawn(name):
    with pytest.raises(ValueError, match=f"{name} has no effect on emoji scenes"):
        DatasetSettings(**{name: "here"})


def test_chooses_a_configuration(tmp_path):
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        rows = {"image": [f"{i}.png" for i in range(4)], "captions": [name] * 4}
        rows["split"] = ["train", "val", "test", "train"]
        Dataset.from_dict(rows).to_parquet(str(tmp_path / name / "all.parquet"))
    for i in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    names = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "de"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    splits = DatasetSettings(dataset=str(tmp_path), dataset_config="de").load()
    assert splits["train"]["captions"][:] == [["de"], ["de"]]


def test_of_emoji_scenes_the_shipped_models_speak():
    found = Settings().models(NEEDED, OPTIONAL)
    assert found == {name: str(SHIPPED / shipped) for name, shipped in {**NEEDED, **OPTIONAL}.items()}
    found = Settings(scorer="truth_scorer", judge="", model_name_or_path="my/captioner").models(NEEDED, OPTIONAL)
    assert found == {"model_name_or_path": "my/captioner", "scorer": str(SHIPPED / "truth_scorer")}


def test_of_other_pictures_only_those_speak_that_are_named():
    own = Settings("pictures", model_name_or_path="my/captioner", scorer="ViT-B-32:openai")
    assert own.models(NEEDED, OPTIONAL) == {"model_name_or_path": "my/captioner", "scorer": "ViT-B-32:openai"}
    assert Settings("pictures").models({}, {"scorer": "scorer", "judge": "judge"}) == {}


@pytest.mark.parametrize(
    ("named", "missing"),
    [
        ({}, ["--model_name_or_path (a captioner", "--scorer (a CLIP"]),
        ({"scorer": ""}, ["--model_name_or_path", "--scorer (a CLIP"]),
        ({"scorer": "ViT-B-32:openai"}, ["--model_name_or_path (a captioner"]),
        ({"model_name_or_path": "my/captioner"}, ["--scorer (a CLIP: an open_clip NAME:TAG such as ViT-B-32:openai"]),
    ],
)
def test_other_pictures_need_models_that_are_named(named, missing):
    with pytest.raises(ValueError, match="--dataset pictures needs .* know only emoji scenes") as refused:
        Settings("pictures", **named).models(NEEDED, OPTIONAL)
    message = str(refused.value)
    assert message.count("--") == 1 + len(missing) and all(name in message for name in missing)


def test_a_shipped_model_that_is_named_for_other_pictures_gets_a_warning(caplog):
    names = {"model_name_or_path": str(SHIPPED / "captioner"), "scorer": "scorer", "judge": "ViT-B-32:openai"}
    with caplog.at_level(logging.WARNING):
        found = Settings("example", **names).models(NEEDED, OPTIONAL)
    assert found == {**names, "scorer": str(SHIPPED / "scorer")}
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("--model_name_or_path names the shipped model captioner, which knows only emoji")
    assert second.startswith("--scorer names the shipped model scorer")
    assert "knows only emoji scenes. Its results mean nothing unless example" in second


def test_a_folder_with_the_name_of_a_shipped_model(tmp_path, monkeypatch):
    (tmp_path / "scorer").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--scorer scorer is both a folder here and .* write \./scorer for"):
        Settings(scorer="scorer").models(NEEDED, OPTIONAL)
    assert Settings(scorer="./scorer").models(NEEDED, OPTIONAL)["scorer"] == "./scorer"
    assert Settings().models(NEEDED, OPTIONAL)["scorer"] == str(SHIPPED / "scorer")


def test_what_is_shipped(tmp_path):
    assert is_shipped("judge") and is_shipped(str(SHIPPED / "judge"))
    (tmp_path / "link").symlink_to(SHIPPED / "judge")
    assert is_shipped(str(tmp_path / "link"))
    assert not is_shipped("ViT-B-32:openai") and not is_shipped(str(Path("outputs/judge")))


@pytest.mark.parametrize("told", [{"train_size": 3}, {"caption_style": "detailed"}])
def test_refuses_to_choose_emoji_scenes_beside_pictures(told):
    (name,) = told
    with pytest.raises(ValueError, match=f"{name} chooses emoji scenes and has no effect on --dataset pictures"):
        Settings("pictures", **told)
    assert Settings(**told)
