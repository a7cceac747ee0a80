import io
import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image
import published_forms
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from loopback_hub import LoopbackHub, Repo

from hf_distinct.data import load_captions
from hf_distinct.data.columns import load_columns

PICTURES = published_forms.jpegs(4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def save(tmp_path):
    """Writes columns with `save_to_disk` and returns the folder; an `image` of bytes becomes an image."""

    def write(features: dict | None = None, **columns) -> str:
        if "image" in columns:
            columns["image"] = [None if each is None else {"bytes": each, "path": None} for each in columns["image"]]
            features = (features or {}) | {"image": Image()}
        dataset = Dataset.from_dict(columns)
        for name, feature in (features or {}).items():
            dataset = dataset.cast_column(name, feature)
        DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "saved"))
        return str(tmp_path / "saved")

    return write


def test_columns_of_other_names(save):
    path = save(
        {"photo": Image()}, photo=[{"bytes": each, "path": None} for each in PICTURES], text=list("abcd"), n=[1] * 4
    )
    train = load_captions(path, image_column="photo", caption_column="text")["train"]
    assert train.column_names == ["image", "captions", "image_id", "n"]
    assert train["captions"][:] == [["a"], ["b"], ["c"], ["d"]]
    assert train["image_id"][:] == ["train-0", "train-1", "train-2", "train-3"]
    assert train[2]["image"].size == (40, 32)
    assert load_captions(path)["train"]["captions"][:] == [["a"], ["b"], ["c"], ["d"]]  # found by kind
    assert load_captions(path)["train"]["n"][:] == [1] * 4
    for settings, message in [
        ({"image_column": "pic"}, r"no column 'pic'; set --image_column to one of photo, text, n\."),
        ({"caption_column": "words"}, "no column 'words'; set --caption_column to one of"),
        ({"image_column": "text", "caption_column": "n"}, "'n' should contain a text or a list of texts, but is"),
        ({"image_column": "n", "caption_column": "text"}, "the image column should contain images"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_captions(path, **settings)


@pytest.mark.parametrize("name", ["image_id", "cocoid", "img_id", "imgid"])
def test_published_names_of_the_id(save, name):
    path = save(image=PICTURES, captions=list("abcd"), **{name: [7, 8, 9, 7]})
    assert load_captions(path)["train"]["image_id"][:] == ["7", "8", "9", "7"]


def test_paths_are_relative_to_the_image_root(save, tmp_path, caplog):
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "pictures" / "a" / "1.jpg").write_bytes(PICTURES[0])
    path = save(photo=["a/1.jpg", "a/2.jpg"], captions=["one", "two"])
    train = load_captions(path, tmp_path / "pictures", image_column="photo")["train"]
    assert train["captions"][:] == [["one"]]
    assert train.cast_column("image", Image(decode=False))[0]["image"]["path"] == str(tmp_path / "pictures/a/1.jpg")
    assert "1 x missing image file" in caplog.text and "a/2.jpg" in caplog.text
    with pytest.raises(ValueError, match=r"missing image file .*a/2\.jpg"):
        load_captions(path, tmp_path / "pictures", image_column="photo", strict=True)


def test_plain_parquet_with_bytes(tmp_path):
    """As other tools write it: nothing in the file says that the bytes are images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"jpg": PICTURES, "caption": ["a", "b", "c", "d"]})
    pq.write_table(table, tmp_path / "some.parquet")
    train = load_captions(tmp_path / "some.parquet", image_column="jpg", caption_column="caption")["train"]
    assert train["captions"][:] == [["a"], ["b"], ["c"], ["d"]] and train[3]["image"].size == (40, 32)


def test_skips_are_counted_and_named(save, caplog):
    path = save(
        image=[PICTURES[0], None, PICTURES[2], PICTURES[3]],
        captions=[["a", ""], ["b"], [], ["x" * 1001, "d "]],
        image_id=["p", "q", "r", "s"],
    )
    train = load_captions(path)["train"]
    assert train["image_id"][:] == ["p", "s"] and train["captions"][:] == [["a"], ["d"]]
    encoded = train.cast_column("image", Image(decode=False))
    assert [row["image"]["bytes"] for row in encoded] == [PICTURES[0], PICTURES[3]]
    (record,) = caplog.records
    assert "1 x empty caption of image ('p')" in record.getMessage()
    assert "1 x row without an image ('q')" in record.getMessage()
    assert "1 x image without a caption ('r')" in record.getMessage()
    with pytest.raises(ValueError, match="empty caption of image: 'p'"):
        load_captions(path, strict=True)


def test_nothing_usable(save):
    with pytest.raises(ValueError, match="no row is usable: 2 x row without an image"):
        load_captions(save(image=[None, None], captions=["a", "b"]))


def test_split_names(tmp_path):
    features = Features({"image": Image(), "captions": Value("string")})
    rows = [
        Dataset.from_dict({"image": [{"bytes": each, "path": None}], "captions": ["a"]}, features=features)
        for each in PICTURES
    ]
    DatasetDict({"train": rows[0], "restval": rows[1], "val": rows[2], "test": rows[3]}).save_to_disk(
        str(tmp_path / "a")
    )
    loaded = load_captions(tmp_path / "a")
    assert {name: rows["image_id"][:] for name, rows in loaded.items()} == {
        "train": ["train-0", "restval-0"],
        "validation": ["val-0"],
        "test": ["test-0"],
    }
    DatasetDict({"test": rows[0]}).save_to_disk(str(tmp_path / "b"))
    assert list(load_captions(tmp_path / "b")) == ["train"]  # all that there is
    rows[0].save_to_disk(str(tmp_path / "c"))
    assert list(load_captions(tmp_path / "c")) == ["train"]
    DatasetDict({"train": rows[0], "hard": rows[1]}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(ValueError, match="unknown split 'hard'"):
        load_captions(tmp_path / "d")


def test_a_column_names_the_splits(save):
    columns = {"captions": list("abcd"), "img_id": [7, 8, 9, 10]}
    loaded = load_captions(save(image=PICTURES, split=["train", "test", "restval", "val"], **columns))
    assert {name: (rows["image_id"][:], rows["captions"][:]) for name, rows in loaded.items()} == {
        "train": (["7", "9"], [["a"], ["c"]]),
        "validation": (["10"], [["d"]]),
        "test": (["8"], [["b"]]),
    }
    with PIL.Image.open(io.BytesIO(PICTURES[1])) as picture:
        assert loaded["test"][0]["image"].tobytes() == picture.tobytes()


def test_a_column_names_a_split_that_nobody_knows(save):
    with pytest.raises(ValueError, match="unknown split 'hard'"):
        load_captions(save(image=PICTURES[:2], captions=["a", "b"], split=["train", "hard"]))


def test_a_label_is_no_caption(save):
    path = save({"label": ClassLabel(names=["cat", "dog"])}, image=PICTURES, label=[0, 1, 0, 1])
    with pytest.raises(ValueError, match="'label' should contain a text or a list of texts, but is ClassLabel"):
        load_captions(path, caption_column="label")


def test_columns_that_could_both_hold_captions(save):
    path = save(image=PICTURES[:1], text=["a"], caption=["b"])
    with pytest.raises(ValueError, match=r"no column 'captions'; set --caption_column to one of (image|text)"):
        load_captions(path)


SENTENCES = [[{"raw": "a dog", "sentid": 1}, {"raw": "one", "sentid": 2}], [{"raw": None, "sentid": 3}]]


@pytest.mark.parametrize("column", [None, "sentences", "sentences.raw"])
def test_captions_in_structs(column, save):
    path = save(image=PICTURES[:2], sentences=SENTENCES)
    assert load_captions(path, caption_column=column)["train"]["captions"][:] == [["a dog", "one"]]


def test_a_field_that_no_struct_has(save):
    path = save(image=PICTURES[:2], sentences=SENTENCES, more=[{"words": "a"}] * 2)
    for column in ("sentences.words", "sentences.sentid", "more"):
        with pytest.raises(ValueError, match=f"column '{column}' should contain a text .*COLUMN.FIELD"):
            load_captions(path, caption_column=column)


def test_a_struct_of_lists_and_numbered_columns(save):
    path = save(image=PICTURES[:2], captions=[{"text": ["a", "b"]}, {"text": ["c"]}])
    assert load_captions(path)["train"]["captions"][:] == [["a", "b"], ["c"]]
    path = save(image=PICTURES[:2], caption_0=["a", "c"], caption_1=["b", None])
    assert load_captions(path)["train"]["captions"][:] == [["a", "b"], ["c"]]


def test_missing_captions_are_skipped_and_counted(save, caplog):
    captions = [[None, "a", "nan", ""], None, ["b"]]
    train = load_captions(save(image=PICTURES[:3], captions=captions, image_id=["p", "q", "r"]))["train"]
    assert train["captions"][:] == [["a"], ["b"]]
    assert "4 x empty caption of image ('p', 'p', 'p', 'q')" in caplog.text
    texts = ["a", float("nan"), "None"]  # what pandas makes of an empty cell
    path = save(image=PICTURES[:3], captions=[text if isinstance(text, str) else None for text in texts])
    assert load_captions(path)["train"]["captions"][:] == [["a"]]


def test_one_row_a_caption(save, caplog):
    rows = [0, 1, 0, 2, 0, 1]
    path = save(
        image=[PICTURES[row] for row in rows],
        captions=["a", "b", "c", "d", "a", "e"],
        sentid=list(range(6)),
        style=[f"s{row}" for row in rows],
    )
    train = load_captions(path)["train"]
    assert train["captions"][:] == [["a", "c"], ["b", "e"], ["d"]]
    assert train["image_id"][:] == ["train-0", "train-1", "train-3"]
    encoded = train.cast_column("image", Image(decode=False))
    assert [row["image"]["bytes"] for row in encoded] == PICTURES[:3]
    assert train["style"][:] == ["s0", "s1", "s2"] and "sentid" not in train.column_names
    assert "ignored 'sentid', which differs among the rows of one image" in caplog.text
    assert "found 1 x repeated caption of image ('train-0')" in caplog.text


def test_one_row_a_caption_by_path(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(PICTURES[number])
    rows = {"image": ["0.jpg", "1.jpg", "./0.jpg"], "caption": ["a", "b", "c"], "image_id": [1.0, None, 1.0]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "d.parquet"))
    monkeypatch.chdir("/")
    train = load_captions(tmp_path / "d.parquet")["train"]  # relative to the file's own folder
    assert train["captions"][:] == [["a", "c"], ["b"]] and train["image_id"][:] == ["1", "train-1"]


def test_a_picture_in_two_splits_is_told(save, caplog):
    loaded = load_captions(save(image=[PICTURES[0]] * 2, captions=["a", "b"], split=["train", "test"]))
    assert {name: rows["captions"][:] for name, rows in loaded.items()} == {"train": [["a"]], "test": [["b"]]}
    assert "found 1 x image of test that is also in train ('train-1')" in caplog.text


def test_further_columns(save, caplog):
    caplog.set_level("INFO", logger="hf_distinct")
    path = save({"label": ClassLabel(names=["cat", "dog"])}, image=PICTURES, captions=list("abcd"), label=[0, 1, 0, 1],
                row=[9] * 4, boxes=[[1]] * 4, note=["n", None, "m", "o"])  # fmt: skip
    train = load_captions(path)["train"]
    assert train.column_names == ["image", "captions", "image_id", "label", "note"]
    assert train["label"][:] == [0, 1, 0, 1] and train["note"][:] == ["n", None, "m", "o"]
    assert "further columns for rewards: label, note" in caplog.text and "ignored 'row'" in caplog.text


def test_urls_are_no_images(save):
    with pytest.raises(ValueError, match="column 'url' contains URLs, not images. .*img2dataset"):
        load_captions(save(url=["https://example.org/a.jpg"], captions=["a"]), image_column="url")


@pytest.fixture
def configs(tmp_path):
    """A folder with a data set of two configurations, as the Hub has them."""
    folder = tmp_path / "languages"
    for name in ("en", "de"):
        (folder / name).mkdir(parents=True)
        Dataset.from_dict({"image": PICTURES[:1], "captions": [name]}).to_parquet(str(folder / name / "train.parquet"))
    names = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("en", "de"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{names}---\n")
    return folder


def test_configurations(configs, save):
    assert load_captions(configs, dataset_config="de")["train"]["captions"][:] == [["de"]]
    for wrong in (None, "fr"):
        with pytest.raises(ValueError, match="set --dataset_config to one of its configurations: 'en', 'de'"):
            load_captions(configs, dataset_config=wrong)
    with pytest.raises(ValueError, match="a folder of save_to_disk: leave out dataset_config='en'"):
        load_captions(save(image=PICTURES, captions=list("abcd")), dataset_config="en")
    with pytest.raises(ValueError, match="a file: leave out dataset_config='en'"):
        load_captions(configs / "en" / "train.parquet", dataset_config="en")


LOAD = """
import json, sys
from hf_distinct.data import load_captions
splits = load_captions("tester/pictures")
found = {name: [rows["image_id"][:], rows["captions"][:], rows[0]["image"].size] for name, rows in splits.items()}
print(json.dumps(found))
"""


@pytest.mark.both_ends
def test_a_data_set_on_the_hub(tmp_path):
    folder, _ = published_forms.parquet(tmp_path, published_forms.jpegs(6), [[f"Caption {row}."] for row in range(6)])
    with LoopbackHub() as hub:
        files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.parquet")}
        hub.repos["datasets/tester/pictures"] = Repo("tester/pictures", private=False, files=files)
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": root}
        done = subprocess.run(
            [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded["train"] == [["0", "1", "2", "3"], [[f"Caption {row}."] for row in range(4)], [40, 32]]
    assert (loaded["validation"][0], loaded["test"][0]) == (["4"], ["5"])


def test_the_hub_without_a_network(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="no file or folder 'nobody/nothing', and no such dataset.*Hub"):
        load_columns("nobody/nothing")


def _paths(tmp_path: Path, paths: list[str], kind: str) -> Path:
    """A parquet file whose column of images holds paths, as texts or as datasets' own pictures without bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array(paths)
    if kind == "pictures":
        rows = [{"bytes": None, "path": path} for path in paths]
        images = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": images, "captions": [f"caption {row}" for row in range(len(paths))]})
    features = Features({"image": Image() if kind == "pictures" else Value("string"), "captions": Value("string")})
    about = {b"huggingface": json.dumps({"info": {"features": features.to_dict()}}).encode()}
    (tmp_path / "data").mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(about), tmp_path / "data" / "d.parquet")
    return tmp_path / "data" / "d.parquet"


@pytest.mark.parametrize("kind", ["texts", "pictures"])
@pytest.mark.parametrize("how", ["absolute", "../", "link", "working directory", "file://"])
def test_paths_that_lead_out_of_the_folder_are_refused_by_name(tmp_path, monkeypatch, kind, how):
    (tmp_path / "private.jpg").write_bytes(PICTURES[0])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.jpg").write_bytes(PICTURES[1])
    (tmp_path / "data" / "link.jpg").symlink_to(tmp_path / "private.jpg")
    monkeypatch.chdir(tmp_path)
    private, link = str(tmp_path / "private.jpg"), str(tmp_path / "data" / "link.jpg")
    name = {
        "absolute": private, "../": f"{tmp_path}/data/../private.jpg", "link": link,
        "working directory": "private.jpg", "file://": f"file://{private}",
    }[how]  # fmt: skip
    path = _paths(tmp_path, [str(tmp_path / "data" / "0.jpg"), name], kind)
    if (kind, how) == ("texts", "working directory"):  # relative to the folder of the data, where there is none
        assert len(load_captions(path)["train"]) == 1
        return
    with pytest.raises(ValueError, match=r"d\.parquet: train, row 1 names .*Only files in .*--image_root /"):
        load_captions(path)
    assert len(load_captions(path, image_root="/")["train"]) == 2
    assert len(load_captions(path, image_root=tmp_path)["train"]) == 2


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_addresses_in_a_local_file_are_left_out_and_counted(tmp_path, kind, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.jpg").write_bytes(PICTURES[1])
    addresses = ["http://127.0.0.1:9/a.jpg", "zip://a.jpg::http://127.0.0.1:9/a.zip", "hf://datasets/a/b/a.jpg",
                 "s3://a/b.jpg", "simplecache::http://127.0.0.1:9/a.jpg", "reference://a::http://127.0.0.1:9/a.json"]
    path = _paths(tmp_path, [str(tmp_path / "data" / "0.jpg"), *addresses], kind)
    assert load_captions(path)["train"]["captions"][:] == [["caption 0"]]
    assert "6 x URL instead of an image (not followed: download it first" in caplog.text
    with pytest.raises(ValueError, match="URL instead of an image"):
        load_captions(path, strict=True)


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_pictures_in_an_archive_beside_the_data(tmp_path, kind):
    import zipfile

    (tmp_path / "data").mkdir()
    for place in (tmp_path / "data", tmp_path):
        with zipfile.ZipFile(place / "a.zip", "w") as archive:
            archive.writestr("0.jpg", PICTURES[0])
    path = _paths(tmp_path, [f"zip://0.jpg::{tmp_path}/data/a.zip"], kind)
    assert load_captions(path)["train"][0]["image"].size == (40, 32)
    with pytest.raises(ValueError, match="Only files in"):
        load_captions(_paths(tmp_path, [f"zip://0.jpg::{tmp_path}/a.zip"], kind))
