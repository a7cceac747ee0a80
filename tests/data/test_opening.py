import json
from pathlib import Path

import published_forms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from hf_distinct.data import load_captions
from hf_distinct.data.opening import open_columns

PICTURES = published_forms.jpegs(2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    rows = Dataset.from_dict({"image": PICTURES, "captions": ["a", "b"]})
    rows.to_parquet(str(tmp_path / "data" / "train.parquet"))
    rows.to_parquet(str(tmp_path / "private.parquet"))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("https://127.0.0.1:9/x.parquet", "URLs in a local file are not followed"),
        ("hf://datasets/a/b/x.parquet", "not followed"),
        ("../private.parquet", r"leads to .*private\.parquet.*Only files in"),
        ("[{split: train, path: [train.parquet, ../private.parquet]}]", "Only files in"),
        ("/etc/*.parquet", "Only files in"),
    ],
)
def test_a_card_names_no_file_outside_and_no_address(folder, name, files, message):
    mark = "---\n" if name == "README.md" else ""
    (folder / name).write_text(f"{mark}configs:\n- config_name: default\n  data_files: {files}\n{mark}")
    with pytest.raises(ValueError, match=rf"{name} names .*{message}"):
        load_captions(folder)


def test_a_card_of_aliases_is_refused_before_it_is_written_out(folder):
    (folder / "README.md").write_text("---\na: &a [x, x]\nb: [*a, *a]\n---\n")
    with pytest.raises(ValueError, match=r"README\.md: not valid YAML: an alias"):
        load_captions(folder)


def test_a_link_that_leads_out_is_refused(folder):
    (folder / "test.parquet").symlink_to(folder.parent / "private.parquet")
    with pytest.raises(ValueError, match=r"test\.parquet', which leads to .*private\.parquet"):
        load_captions(folder)


def test_a_file_of_save_to_disk_names_no_other_folder(tmp_path):
    rows = Dataset.from_dict({"image": PICTURES, "captions": ["a", "b"]})
    DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    rows.save_to_disk(str(tmp_path / "private"))
    assert len(open_columns(tmp_path / "saved")["train"]) == 2
    path = tmp_path / "saved" / "train" / "state.json"
    state = json.loads(path.read_text())
    state["_data_files"] = [{"filename": "../../private/data-00000-of-00001.arrow"}]
    path.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state\.json names .*Only files in"):
        open_columns(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["../private"]}')
    with pytest.raises(ValueError, match=r"dataset_dict\.json names .*Only files in"):
        open_columns(tmp_path / "saved")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"\xff\xff\xff\x7fPAR1"])
def test_a_broken_parquet_file_is_named(tmp_path, content):
    (tmp_path / "torn.parquet").write_bytes(content)
    for path in (tmp_path, tmp_path / "torn.parquet"):
        with pytest.raises(ValueError, match=r"torn\.parquet: not a readable parquet file"):
            load_captions(path)


def test_torn_pages_are_named(folder):
    path = folder / "train.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.parquet: it cannot be read"):
        load_captions(path)


def test_more_rows_than_bytes_are_refused(tmp_path):
    table = pa.table({"image": pa.nulls(5_000_000, pa.string()), "captions": pa.nulls(5_000_000, pa.string())})
    pq.write_table(table, tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"many\.parquet: it claims 5000000 rows but has \d+ bytes"):
        load_captions(tmp_path / "many.parquet")


def test_texts_of_a_saved_folder_that_are_none_are_named(tmp_path):
    Dataset.from_dict({"image": PICTURES, "captions": ["dogsdogs", "b"]}).save_to_disk(str(tmp_path / "saved"))
    (path,) = (tmp_path / "saved").glob("*.arrow")
    path.write_bytes(path.read_bytes().replace(b"dogsdogs", b"\xff" * 8))
    with pytest.raises(ValueError, match=r"saved: it cannot be read: .*[Uu][Tt][Ff]-?8"):
        load_captions(tmp_path / "saved")


@pytest.mark.parametrize("value", [None, 1.5, "text"])
def test_a_description_that_is_no_text_does_no_harm(tmp_path, value):
    rows = Dataset.from_dict({"image": PICTURES, "captions": ["a", "b"]})
    rows.save_to_disk(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "dataset_info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "homepage": value}))
    assert load_captions(tmp_path / "saved")["train"]["captions"][:] == [["a"], ["b"]]
