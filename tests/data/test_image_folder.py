import json

import pytest

from hf_distinct.data.image_folder import load_image_folder


@pytest.fixture
def folder(picture, tmp_path):
    """Writes lines (objects, or text as it stands) beside three pictures and returns the folder."""
    for number in range(3):
        picture(f"pets/{number}.png", seed=number)

    def write(*lines) -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
        return str(tmp_path)

    return write


def line(number: int, **more) -> dict:
    return {"file_name": f"pets/{number}.png", "captions": [f"Pet {number}.", "A pet."], **more}


def test_lists_single_texts_ids_and_splits(folder, caplog):
    path = folder(
        line(0), "", line(1, captions="One pet.", image_id=7, split="val"), line(2, image_id="x", split="test"), "  "
    )
    loaded = load_image_folder(path)
    assert {name: rows["image_id"][:] for name, rows in loaded.items()} == {
        "train": ["pets/0.png"],
        "validation": ["7"],
        "test": ["x"],
    }
    assert loaded["train"][0]["captions"] == ["Pet 0.", "A pet."]
    assert loaded["validation"][0]["captions"] == ["One pet."]
    assert loaded["train"][0]["image"].size == (40, 30)
    assert not caplog.records


def test_windows_line_ends_and_unusual_separators(folder):
    path = folder(line(0, captions=["A\u2028pet\u0085here."]) | {}, "\r", line(1))
    assert load_image_folder(path)["train"]["captions"][0] == ["A\u2028pet\u0085here."]


def test_the_same_file_twice_merges(folder):
    loaded = load_image_folder(folder(line(0), line(0, captions=["A pet.", "Another look."])))
    assert loaded["train"]["captions"][:] == [["Pet 0.", "A pet.", "Another look."]]


def test_unknown_keys_are_told(folder, caplog):
    load_image_folder(folder(line(0, mood="glad"), line(1, splits="test")))
    assert "ignored the keys ['mood', 'splits']" in caplog.text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"file_name": "pets/1.png", "captions": ["A', r"metadata\.jsonl, line 3: this is not JSON"),
        ("[1, 2]", "line 3: expected an object with 'file_name', found list"),
        ({"captions": ["a"]}, r"line 3: 'file_name' \(text\) is missing"),
        ({"file_name": "pets/1.png", "caption": "a"}, r"line 3: 'captions' \(a list or text\) is missing"),
        (line(1, captions=None), "line 3: 'captions' should be a list or text, found NoneType"),
        (line(1, captions=["a", 5]), r"line 3: captions\[1\] should be text, found int"),
        (line(1, split="dev"), "line 3: unknown split 'dev'"),
        (line(1, image_id="pets/0.png"), r"stands twice: .*line 1 .*line 3"),
        (line(0, split="test"), r"stands twice: .*line 1 .*line 3"),
    ],
)
def test_a_broken_line_is_named(second, message, folder):
    with pytest.raises(ValueError, match=message):
        load_image_folder(folder(line(0), "", second, line(2)))


def test_skips_are_counted_and_named(folder, caplog):
    path = folder(line(0), line(9), line(1, captions=[]))
    assert len(load_image_folder(path)["train"]) == 1
    assert "1 x missing image file" in caplog.text
    assert "9.png" in caplog.text
    assert "1 x image without a caption ('pets/1.png')" in caplog.text
    with pytest.raises(ValueError, match=r"9\.png"):
        load_image_folder(path, strict=True)


def test_no_metadata_and_empty_metadata(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"metadata\.jsonl"):
        load_image_folder(tmp_path)
    with pytest.raises(ValueError, match="there are no images in it"):
        load_image_folder(folder("", ""))


def test_captions_under_another_key(folder):
    path = folder({"file_name": "pets/0.png", "text": "A pet."}, {"file_name": "pets/1.png", "text": ["One.", "Two."]})
    assert load_image_folder(path, caption_column="text")["train"]["captions"][:] == [["A pet."], ["One.", "Two."]]
    with pytest.raises(ValueError, match="line 1: 'captions' .* is missing"):
        load_image_folder(path)


def test_a_table_gathers_its_rows_by_file(picture, tmp_path):
    for number in range(2):
        picture(f"{number}.png", seed=number)
    (tmp_path / "metadata.csv").write_text(
        'file_name,captions,split\n0.png,"A pet, asleep.",train\n1.png,Another.,test\n0.png,A cat.,train\n'
    )
    loaded = load_image_folder(tmp_path)
    assert loaded["train"]["captions"][:] == [["A pet, asleep.", "A cat."]]
    assert loaded["test"]["image_id"][:] == ["1.png"]
    (tmp_path / "metadata.csv").write_text("file_name,captions\n0.png,\n1.png\n")
    with pytest.raises(ValueError, match="line 3: 'captions' .* is missing"):
        load_image_folder(tmp_path)


def test_a_folder_for_each_split(picture, tmp_path):
    for split in ("train", "val", "test"):
        picture(f"{split}/0.png")
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "captions": split}))
    loaded = load_image_folder(tmp_path)
    assert {name: (rows["image_id"][0], rows["captions"][0]) for name, rows in loaded.items()} == {
        "train": ("train/0.png", ["train"]),
        "validation": ("val/0.png", ["val"]),
        "test": ("test/0.png", ["test"]),
    }
