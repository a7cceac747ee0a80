import pytest

from hf_distinct.data.table import find_file, parse_json, read_json, take, take_id


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


def test_files_under_other_spellings(picture, tmp_path):
    paths = [picture(name) for name in ("a b.JPG", "x.png", "deep/y.jpeg")]
    for spelling, path in [("a%20b.jpg", 0), ("x", 1), ("x.PNG", 1), ("deep\\y.jpeg", 2), ("deep\\y", 2)]:
        assert find_file(str(tmp_path / spelling)) == str(paths[path])
    assert find_file(str(tmp_path / "z.png")) is None
