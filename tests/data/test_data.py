import json
import subprocess
import sys

import pytest

import hf_distinct.data
from hf_distinct.data import load_captions

KARPATHY = {"images": [{"filename": "1.png", "imgid": 3, "split": "test", "sentences": [{"raw": "A cat."}]}]}
COCO = {"images": [{"id": 4, "file_name": "1.png"}], "annotations": [{"image_id": 4, "caption": "A cat."}]}


@pytest.mark.parametrize(("document", "split", "image_id"), [(KARPATHY, "test", "3"), (COCO, "train", "4")])
def test_both_json_forms_are_told_apart(document, split, image_id, picture, write_json, tmp_path):
    picture("1.png")
    loaded = load_captions(write_json(document))
    assert {name: rows["image_id"][:] for name, rows in loaded.items()} == {split: [image_id]}
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of the 1 images is usable"):
        load_captions(write_json(document), image_root=tmp_path / "empty")


def test_folder(picture, tmp_path):
    picture("1.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "captions": "A cat."}))
    assert load_captions(tmp_path)["train"]["captions"][:] == [["A cat."]]
    with pytest.raises(ValueError, match="leave out image_root"):
        load_captions(tmp_path, image_root=tmp_path)


def test_strict_reaches_every_form(picture, write_json, tmp_path):
    for document in (KARPATHY, COCO):
        with pytest.raises(ValueError, match=r"missing image file: .*strict=False"):
            load_captions(write_json(document), strict=True)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "captions": "A cat."}))
    with pytest.raises(ValueError, match=r"missing image file: .*strict=False"):
        load_captions(tmp_path, strict=True)


def test_other_things_are_refused_by_name(tmp_path, write_json):
    with pytest.raises(ValueError, match=r"contains no metadata\.jsonl"):
        load_captions(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_captions(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"neither 'sentences'|captions are missing: .*\['images'\]"):
        load_captions(write_json({"images": [{"id": 1, "file_name": "1.png"}]}))
    with pytest.raises(ValueError, match=r"json\[0\]: expected an object with 'file_name' and 'captions', found int"):
        load_captions(write_json([1]))
    text = tmp_path / "captions.doc"
    text.write_text("a,b")
    with pytest.raises(ValueError, match="neither a caption file"):
        load_captions(text)


def test_every_public_name_is_there():
    for name in hf_distinct.data.__all__:
        assert callable(getattr(hf_distinct.data, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_distinct.data.nothing


def test_import_loads_nothing_heavy():
    heavy = "sorted({'torch', 'datasets', 'transformers', 'PIL'} & set(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; import hf_distinct.data; print({heavy})"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def test_settings_without_a_use_are_refused(picture, write_json, tmp_path):
    picture("1.png")
    with pytest.raises(ValueError, match="a JSON file: leave out caption_column='x'"):
        load_captions(write_json(COCO), caption_column="x")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": "A cat."}))
    with pytest.raises(ValueError, match="with its images: leave out image_column='x'"):
        load_captions(tmp_path, image_column="x")
    assert load_captions(tmp_path, caption_column="text")["train"]["captions"][:] == [["A cat."]]


@pytest.fixture
def private(picture, tmp_path, monkeypatch):
    """A picture beside the folder `data`, which holds another one, and links that lead to it."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    path = picture("home/private.png", seed=1)
    picture("data/1.png")
    (tmp_path / "data" / "link.png").symlink_to(path)
    (tmp_path / "data" / "home").symlink_to(path.parent)
    return path


OUTSIDE = [
    "../home/private.png", "ABSOLUTE", "..\\home\\private.png", "%2e%2e/home/private.png", "..%2fhome%2fprivate",
    "link.png", "home/private.png", "../data/../home/private.png",
]  # fmt: skip


def _files_that_name(name: str) -> dict[str, str]:
    """A file of every form that names two pictures, by its name."""
    rows = [{"image": "1.png", "caption": "A cat."}, {"image": name, "caption": "A dog."}]
    images = [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": name}]
    annotations = [{"image_id": 1, "caption": "A cat."}, {"image_id": 2, "caption": "A dog."}]
    karpathy = [
        {"filename": row["image"], "imgid": number, "split": "train", "sentences": [{"raw": row["caption"]}]}
        for number, row in enumerate(rows)
    ]
    lines = "".join(json.dumps({"file_name": row["image"], "captions": row["caption"]}) + "\n" for row in rows)
    return {
        "list.json": json.dumps(rows),
        "by_name.json": json.dumps({"1.png": "A cat.", name if "." in name[-4:] else f"{name}.png": "A dog."}),
        "list.jsonl": lines,
        "metadata.jsonl": lines,
        "coco.json": json.dumps({"images": images, "annotations": annotations}),
        "karpathy.json": json.dumps({"images": karpathy}),
        "karpathy_filepath.json": json.dumps({"images": [karpathy[0] | {"filepath": "."}, karpathy[1]]}),
        "list.csv": f"image,caption\n1.png,A cat.\n{name},A dog.\n",
        "list.tsv": f"image\tcaption\n1.png\tA cat.\n{name}\tA dog.\n",
        "a.token.txt": f"1.png#0\tA cat.\n{name}#0\tA dog.\n",
    }


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("form", _files_that_name(""))
def test_no_form_reads_a_picture_outside_of_its_folder(form, name, private, tmp_path):
    name = str(private) if name == "ABSOLUTE" else name
    path = tmp_path / "data" / form
    path.write_text(_files_that_name(name)[form])
    given = path.parent if form == "metadata.jsonl" else path
    with pytest.raises(ValueError, match=r"names .*private\.png.*Only files in .*data' are read"):
        load_captions(given)
    if form != "metadata.jsonl":
        with pytest.raises(ValueError, match="Only files in"):
            load_captions(given, image_root=tmp_path / "data")


@pytest.mark.parametrize("form", _files_that_name(""))
@pytest.mark.parametrize("root", ["", "/"])
def test_image_root_is_the_fence(form, root, private, tmp_path):
    path = tmp_path / "data" / form
    for name in (str(private), "../home/private.png", "link.png"):
        path.write_text(_files_that_name(name)[form])
        assert len(load_captions(path, image_root=root or tmp_path)["train"]) == 2


@pytest.mark.parametrize("name", ["", "/", ".", "..", "a\0b", "x" * 5000, "~", "\ud83d", "http://127.0.0.1:9/1.png",
                                  "zip://1.png::http://127.0.0.1:9/a.zip", "hf://datasets/a/b/1.png"])  # fmt: skip
def test_names_that_are_no_picture_are_left_out_and_counted(name, picture, tmp_path, caplog):
    picture("1.png")
    rows = [{"image": "1.png", "caption": "a"}, {"image": name, "caption": "b"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert load_captions(tmp_path / "list.json")["train"]["captions"][:] == [["a"]]
    assert "skipped 1 x " in caplog.text


def test_links_of_text_beside_pictures(private, tmp_path):
    (tmp_path / "secret").write_text("the password")
    (tmp_path / "data" / "1.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"1\.txt', which leads to .*secret'.*copy it into this folder"):
        load_captions(tmp_path / "data")
    (tmp_path / "data" / "1.txt").unlink()
    (tmp_path / "data" / "link.txt").write_text("a cat")
    with pytest.raises(ValueError, match=r"link\.png', which leads to .*private\.png"):
        load_captions(tmp_path / "data")


@pytest.mark.parametrize("name", ["captions.csv", "metadata.jsonl", "captions_train2017.json"])
def test_a_file_of_captions_that_is_found_is_no_link_out_of_the_folder(name, private, tmp_path):
    (tmp_path / name).write_text(_files_that_name("1.png")["list.csv"])
    (tmp_path / "data" / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match="pass that file itself as --dataset"):
        load_captions(tmp_path / "data")


def test_large_files_of_zeros_are_not_read(picture, tmp_path):
    picture("1.png")
    for name in ("list.json", "list.jsonl", "list.csv", "1.txt"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(8 << 30)
        with pytest.raises(ValueError, match=rf"{name}: 8589934592 bytes are over the limit|line 1: it has over"):
            load_captions(tmp_path if name == "1.txt" else tmp_path / name)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("depth", [20, 300, 100_000])
def test_captions_nested_without_end_are_one_error(depth, picture, tmp_path):
    picture("1.png")
    (tmp_path / "list.json").write_text('[{"image": "1.png", "caption": ' + "[" * depth + '"a"' + "]" * depth + "}]")
    with pytest.raises(ValueError, match=r"list\.json.*nested"):
        load_captions(tmp_path / "list.json")


def test_fields_of_a_table_over_the_limit_of_csv_are_named(picture, tmp_path):
    picture("1.png")
    (tmp_path / "list.csv").write_text("image,caption\n1.png," + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"list\.csv, line 2: field larger than field limit"):
        load_captions(tmp_path / "list.csv")
