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


def test_other_keys_become_columns(folder, caplog):
    caplog.set_level("INFO", logger="hf_distinct")
    loaded = load_image_folder(
        folder(line(0, mood="glad", size=1, boxes=[1]), line(1, size=2.5, row=3, split="test"), line(2, on=True))
    )
    assert loaded["train"].select_columns(["mood", "size", "on"])[:] == {
        "mood": ["glad", None],
        "size": [1.0, None],
        "on": [None, True],
    }
    assert loaded["train"].features == loaded["test"].features  # also where a split lacks a key
    assert "further columns for rewards: mood, size, on" in caplog.text
    assert "ignored 'boxes', 'row': a further column should contain texts, numbers or booleans" in caplog.text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"file_name": "pets/1.png", "captions": ["A', r"metadata\.jsonl, line 3: this is not JSON"),
        ("[1, 2]", "line 3: expected an object with 'file_name', found list"),
        ({"captions": ["a"]}, r"line 3: 'file_name' \(text\) is missing"),
        ({"file_name": "pets/1.png", "caption": "a"}, r"line 3: 'captions' \(a list or text\) is missing"),
        (line(1, captions={"words": "a"}), "line 3: a caption is an object without .*; it has the fields words"),
        (line(1, split="hard"), "line 3: unknown split 'hard'"),
        (line(1, image_id=1.5), "line 3: 'image_id' should be text or an integer, found float"),
        (line(1, image_id="pets/0.png"), r"appears twice: .*line 1 .*line 3"),
        (line(0, split="test"), r"0\.png' appears twice: .*line 1 \(train\) .*line 3 \(test\)\. Put it into one"),
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
    with pytest.raises(ValueError, match="it contains no images"):
        load_image_folder(folder("", ""))


def test_captions_under_another_key(folder):
    path = folder({"file_name": "pets/0.png", "text": "A pet."}, {"file_name": "pets/1.png", "text": ["One.", "Two."]})
    for column in ("text", None):  # the only key with a usual name
        assert load_image_folder(path, caption_column=column)["train"]["captions"][:] == [["A pet."], ["One.", "Two."]]
    with pytest.raises(ValueError, match="line 1: 'words' .* is missing; found the keys"):
        load_image_folder(path, caption_column="words")
    for more in ({"text": "A.", "caption": "B."}, {"words": "A."}):
        names = ", ".join(["file_name", *more])
        with pytest.raises(ValueError, match=f"line 1: which of the keys contains the captions.*_column .*{names}"):
            load_image_folder(folder({"file_name": "pets/0.png", **more}))


def test_captions_in_structs(folder):
    sentences = [{"raw": "A pet.", "sentid": 1}, {"raw": "One.", "sentid": 2}]
    path = folder({"file_name": "pets/0.png", "sentences": sentences, "id": {"en": "Eng", "de": "Deutsch"}})
    assert load_image_folder(path)["train"]["captions"][:] == [["A pet.", "One."]]
    assert load_image_folder(path, caption_column="id.de")["train"]["captions"][:] == [["Deutsch"]]
    with pytest.raises(ValueError, match="line 1: a caption is an object without .*; it has the fields en, de"):
        load_image_folder(path, caption_column="id")


def test_missing_captions_are_skipped_and_counted(folder, caplog):
    path = folder(
        line(0, captions=None),
        '{"file_name": "pets/1.png", "captions": ["A dog.", null, NaN, "nan", " ", 5]}',
        line(2, captions=float("nan")),
    )
    assert load_image_folder(path)["train"]["captions"][:] == [["A dog."]]
    assert "6 x empty caption of image ('pets/0.png', 'pets/1.png', 'pets/1.png', 'pets/1.png'" in caplog.text
    assert "1 x caption that is not text (int) of image ('pets/1.png')" in caplog.text
    with pytest.raises(ValueError, match="empty caption of image: 'pets/0.png'"):
        load_image_folder(path, strict=True)


def test_rows_of_one_picture_are_one_image_whatever_their_ids(folder, caplog):
    said = enumerate(("A.", "B.", "A."))
    path = folder(*[line(0, captions=text, image_id=i, style="short", turn=i) for i, text in said])
    train = load_image_folder(path)["train"]
    assert train["captions"][:] == [["A.", "B."]] and train["image_id"][:] == ["0"]
    assert train["style"][:] == ["short"] and "turn" not in train.column_names
    assert "found 1 x repeated caption of image ('0')" in caplog.text
    assert "ignored 'turn', which differs among the rows of one image" in caplog.text


def test_ids_that_a_table_made_floats(folder):
    loaded = load_image_folder(folder(line(0, image_id=1.0), line(1, image_id=None), line(0, image_id="1")))
    assert loaded["train"]["image_id"][:] == ["1", "pets/1.png"]


def test_paths_of_windows_and_of_urls(picture, folder):
    picture("pets/a b.JPG")
    lines = [line(0, file_name="pets\\0.png"), line(0, file_name="pets/a%20b.jpg"), line(0, file_name=" pets/2.png ")]
    assert len(load_image_folder(folder(*lines))["train"]) == 3
    with pytest.raises(ValueError, match="1 x image that is a URL .*img2dataset"):
        load_image_folder(folder(line(0, file_name="https://example.org/0.png")))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_byte_order_marks(encoding, name, folder, tmp_path):
    folder()
    (tmp_path / "metadata.jsonl").unlink()
    lines = ['{"file_name": "pets/0.png", "captions": "Café."}', '{"file_name": "pets/1.png", "captions": "B."}']
    text = "\r\n".join(lines if name.endswith("l") else ["file_name,captions", "pets/0.png,Café.", "pets/1.png,B."])
    (tmp_path / name).write_bytes((text + "\r\n").encode(encoding))
    assert load_image_folder(tmp_path)["train"]["captions"][:] == [["Café."], ["B."]]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_other_encodings_are_refused(name, folder, tmp_path):
    folder()
    (tmp_path / "metadata.jsonl").unlink()
    table, lines = "file_name,captions\npets/0.png,Café.", '\n{"file_name": "a", "captions": "Café."}'
    (tmp_path / name).write_bytes((table if name.endswith("v") else lines).encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}.*line 2.* is not UTF-8 \(byte 0xe9 at \d+\)\. Save the file as"):
        load_image_folder(tmp_path)


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
    with pytest.raises(ValueError, match="2 x empty caption of image \\('0.png', '1.png'\\)"):
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
