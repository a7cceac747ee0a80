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
    with pytest.raises(ValueError, match=r"holds no metadata\.jsonl"):
        load_captions(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_captions(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"neither 'sentences'|captions are missing: .*\['images'\]"):
        load_captions(write_json({"images": [{"id": 1, "file_name": "1.png"}]}))
    with pytest.raises(ValueError, match=r"json\[0\]: expected an object with 'file_name' and 'captions', found int"):
        load_captions(write_json([1]))
    text = tmp_path / "captions.doc"
    text.write_text("a,b")
    with pytest.raises(ValueError, match="neither a file of captions"):
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
    with pytest.raises(ValueError, match="holds its images: leave out image_column='x'"):
        load_captions(tmp_path, image_column="x")
    assert load_captions(tmp_path, caption_column="text")["train"]["captions"][:] == [["A cat."]]
