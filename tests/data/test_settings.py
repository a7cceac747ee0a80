"""The settings by which recipes are told their pictures."""

import json

import pytest
from datasets import Dataset
from PIL import Image

from hf_distinct.data.settings import DatasetSettings


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
    with pytest.raises(ValueError, match=f"{name} says how to read pictures"):
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
