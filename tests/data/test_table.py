import pytest

from hf_distinct.data.table import CaptionTable, find_file, parse_json, read_json, take, take_id


def test_read_json_takes_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"images": []}')
    assert read_json(path) == {"images": []}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{\x00", b"[" * 100_000, b"1" * 10_000, b'{"a": 1, "b": 2, "a": 3}']
)
def test_what_is_not_json_is_named(content, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json: (this is not JSON|line 1 is not UTF-8)"):
        read_json(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "here: expected an object with 'id', found list"),
        ({"ID": 1}, r"here: 'id' \(text or an integer\) is missing; found the keys \['ID'\]"),
        ({"id": 1.5}, "here: 'id' should be text or an integer, found float: '1.5'"),
        ({"id": True}, "found bool"),
        ({"id": None}, "found NoneType"),
        ({"id": " "}, "should be an id"),
        (parse_json(b'{"id": "\\ud83d"}', "here"), "should be an id"),
        ({"id": float("nan")}, "found float: 'nan'"),
    ],
)
def test_ids_of_the_wrong_shape(record, message):
    with pytest.raises(ValueError, match=message):
        take_id(record, "id", "here")


def test_take_gives_the_value():
    assert take({"a": [1]}, "a", list, "here") == [1]
    assert take_id({"id": 5}, "id", "here") == take_id({"id": 5.0}, "id", "here") == "5"


def test_captions_are_cleaned_and_every_skip_is_told(picture, caplog):
    table = CaptionTable("source")
    captions = ["  A cat. \n", "", " . ", "...", "\u3000", "x" * 10_000, "x" * 1000, "x" * 1001, "\ud83d", "日本"]
    table.add("1", picture("1.png"), captions, "train", "row 1")
    table.add("2", picture("2.png"), ["", "y" * 10_000], "train", "row 2")
    table.add("3", picture("3.png"), [], "train", "row 3")
    splits = table.finish()
    assert splits["train"]["image_id"][:] == ["1"]
    assert splits["train"]["captions"][0] == ["A cat.", "x" * 1000, "日本"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "source: skipped 5 x empty caption of image ('1', '1', '1', '1', '2'); "
        "3 x caption over 1000 characters of image ('1', '1', '2'); "
        "1 x caption with a broken character (lone surrogate) of image ('1'); "
        "2 x image without a caption ('2', '3')"
    )


@pytest.mark.parametrize("captions", [["a", ""], ["a", "x" * 1001], []])
def test_strict_makes_each_an_error(captions, picture):
    table = CaptionTable("source", strict=True)
    table.add("17", picture("1.png"), captions, "train", "row 1")
    with pytest.raises(ValueError, match="source: .*'17'"):
        table.finish()


def test_relative_paths_outlive_a_change_of_folder(picture, monkeypatch, tmp_path):
    monkeypatch.chdir(picture("deep/1.png").parent)
    table = CaptionTable("source")
    table.add("1", "1.png", ["a"], "train", "row 1")
    loaded = table.finish()
    monkeypatch.chdir(tmp_path)
    assert loaded["train"][0]["image"].size == (40, 30)


def test_same_id_and_file_merges_new_captions(picture):
    table = CaptionTable("source")
    path = picture("1.png")
    table.add("1", path, ["a", "b", "b"], "train", "row 1")
    table.add("1", path.parent / "." / "1.png", ["b", "c"], "train", "row 2")
    assert table.finish()["train"]["captions"][:] == [["a", "b", "b", "c"]]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("2.png", "train", r"id '1' appears twice: row 1 .*row 2"),
        ("1.png", "test", r"1\.png' appears twice: row 1 \(train\) and row 2 \(test\)"),
    ],
)
def test_same_id_elsewhere_is_an_error_that_names_both_rows(name, split, message, picture):
    table = CaptionTable("source")
    table.add("1", picture("1.png"), ["a"], "train", "row 1")
    with pytest.raises(ValueError, match=message):
        table.add("1", picture(name), ["b"], split, "row 2")


def test_a_lost_split_is_told(picture, tmp_path, caplog):
    table = CaptionTable("source")
    table.add("1", picture("1.png"), ["a"], "train", "row 1")
    table.add("2", tmp_path / "none.png", ["a"], "validation", "row 2")
    assert list(table.finish()) == ["train"]
    assert "1 x split without any usable image ('validation')" in caplog.text
    assert "none.png" in caplog.text


def test_no_images_and_no_usable_images(tmp_path):
    table = CaptionTable("source")
    with pytest.raises(ValueError, match="source: it contains no images"):
        table.finish()
    for number in range(7):
        table.add(str(number), tmp_path / f"{number}.png", ["a"], "train", f"row {number}")
    with pytest.raises(ValueError, match=r"none of the 7 images is usable: 7 x missing image file .*image folder"):
        table.finish()


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="row 1: unknown split 'dev'"):
        CaptionTable("source").add("1", tmp_path / "1.png", ["a"], "dev", "row 1")


def test_another_id_of_the_same_file_merges(picture):
    table = CaptionTable("source")
    for row in range(3):
        table.add(str(row), picture("1.png"), [f"caption {row}"], "train", f"row {row}")
    train = table.finish()["train"]
    assert train["captions"][:] == [["caption 0", "caption 1", "caption 2"]] and train["image_id"][:] == ["0"]


def test_files_under_other_spellings(picture, tmp_path):
    paths = [picture(name) for name in ("a b.JPG", "x.png", "deep/y.jpeg")]
    for spelling, path in [("a%20b.jpg", 0), ("x", 1), ("x.PNG", 1), ("deep\\y.jpeg", 2), ("deep\\y", 2)]:
        assert find_file(str(tmp_path / spelling)) == str(paths[path])
    assert find_file(str(tmp_path / "z.png")) is None
