import json

import pytest

from hf_distinct.data import json_items
from hf_distinct.data.json_items import first_item, list_items


@pytest.fixture(autouse=True)
def small_window(monkeypatch):
    monkeypatch.setattr(json_items, "CHUNK", 7)


DOCUMENTS = [
    {"images": []},
    {"info": {"images": [1]}, "images": [{"a": "ö" * 30}, [], None, 1234567890, -1.5e-7, True, "\ud83d\n"], "n": 12},
    {"licenses": [{"id": 1}] * 5, "images": [{"id": number, "texts": ["日本"] * number} for number in range(9)]},
]


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("indent", [None, 3])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_items_are_those_of_the_document(document, indent, encoding, tmp_path):
    path = tmp_path / "a.json"
    plain = encoding.startswith("utf-8")
    path.write_text(json.dumps(document, indent=indent, ensure_ascii=not plain).replace("\ud83d", "\\ud83d"), encoding)
    assert list(list_items(path, "images")) == list(enumerate(document["images"]))
    assert first_item(path, "images") == next(iter(document["images"]), None)


@pytest.mark.parametrize("chunk", range(1, 25))
def test_a_number_at_the_end_of_the_window_is_read_whole(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_items, "CHUNK", chunk)
    path = tmp_path / "a.json"
    path.write_text('{"size": 12345, "images": [1234567, 89]}')
    assert list(list_items(path, "images")) == [(0, 1234567), (1, 89)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [1, 2', r"line 1 column 17"),
        ('{"images": [1 2]}', r"line 1 column 15"),
        ('{"images": [{"a": 1, "a": 2}]}', "the key 'a' is repeated"),
        ('{"images": [1], "images": [2]}', "the key 'images' is repeated"),
        ('{"images": [1]} x', "Extra data"),
        ('{"images": [1],}', "line 1 column 1[56]"),
        ('{"image": [1]}', r"'images' \(a list\) is missing"),
        ('{"images": {"a": 1}}', "'images' should be a list, found dict"),
        ("[1]", "expected an object with 'images', found list"),
        ('{"images": [' + "[" * 100_000, "nested too deeply"),
        ("", "Expecting value"),
    ],
)
def test_what_is_wrong_is_told_as_for_the_whole_document(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}"):
        list(list_items(path, "images"))


def test_a_value_as_large_as_the_memory_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_items, "MAX_VALUE_BYTES", 1000)
    path = tmp_path / "a.json"
    path.write_text('{"images": ["' + "a" * 5000 + '"]}')
    assert first_item(path, "images") is None
    with pytest.raises(ValueError, match="a value of more than 1000 bytes"):
        list(list_items(path, "images"))
