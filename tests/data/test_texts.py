import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.data.skips import Skips
from hf_distinct.data.texts import caption_lines, clean_captions, decode_text, find_name, split_field, texts_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_no_part_of_a_text(encoding):
    assert decode_text("un café".encode(encoding), "a.txt") == "un café"


def test_what_is_not_utf8_is_named():
    with pytest.raises(ValueError, match=r"a\.txt: line 2 is not UTF-8 \(byte 0xe9 at 9\)\. Save the file as UTF-8"):
        decode_text("A cat\ncafé".encode("latin-1"), "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt: this is not UTF-8, but perhaps UTF-16 without its mark"):
        decode_text("A cat".encode("utf-16-le"), "a.txt")
    with pytest.raises(ValueError, match="is not UTF-16-LE"):
        decode_text(b"\xff\xfea", "a.txt")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))  # UTF-16's mark and NUL are UTF-32's mark
def test_every_text_survives_its_encoding(text):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert decode_text(text.encode(encoding), "") == text


def test_lines_of_every_system():
    assert caption_lines(b"a dog\r\n\r\n a cat \rcow\n", "") == ["a dog", "a cat", "cow"]
    assert caption_lines("a\u2028b".encode(), "") == ["a\u2028b"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a", ["a"]),
        (["a", ["b"]], ["a", "b"]),
        ({"raw": "a", "text": "b"}, ["a"]),
        ({"text": ["a", "b"], "sentid": [1, 2]}, ["a", "b"]),
        ([{"caption": "a"}, {"sentence": "b"}, None], ["a", "b", None]),
        ('["a dog", "a \\"cat\\""]', ["a dog", 'a "cat"']),
        ("['a dog', \"it's\"]", ["a dog", "it's"]),
        ("['a dog'\n 'a cat']", ["a dog", "a cat"]),
        ("[a dog]", ["[a dog]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("[", ["["]),
        (None, [None]),
        (5, [5]),
        ([], []),
    ],
)
def test_captions_in_any_form(value, texts):
    assert texts_of(value) == texts


def test_fields_of_structs():
    assert texts_of([{"en": "a", "raw": "b"}], "en") == ["a"]
    with pytest.raises(ValueError, match="object without a field 'en'; it has the fields raw"):
        texts_of({"raw": "b"}, "en")
    with pytest.raises(ValueError, match="source: image '7': .* fields de, fr. Set --caption_column COLUMN.FIELD"):
        clean_captions([{"de": "a", "fr": "b"}], "7", Skips("source"))
    assert split_field("sentences.raw", ["sentences"]) == ("sentences", "raw")
    assert split_field("sentences.raw", ["sentences", "sentences.raw"]) == ("sentences.raw", None)
    assert split_field("a.b.c", ["a"]) == ("a", "b.c") and split_field("x", ["a"]) == ("x", None)


@pytest.mark.parametrize("empty", [None, float("nan"), "", " \n", "nan", "NaN", " None ", "null.", "<NA>", ".", "\t"])
def test_what_says_nothing_is_empty(empty):
    skips = Skips("source")
    assert clean_captions([empty, " a dog. "], "7", skips) == ["a dog."]
    assert skips.names == {"empty caption of image": ["7"]}


@pytest.mark.parametrize("value", [5, 2.5, True])
def test_what_is_no_text(value):
    skips = Skips("source")
    assert clean_captions([value], "7", skips) == []
    name = f"caption that is not text ({type(value).__name__}) of image"
    assert skips.names == {name: ["7"], "image without a caption": ["7"]}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["image", "caption"], "caption"),
        (["captions", "caption", "text"], "captions"),
        (["Caption", "title"], "Caption"),
        (["caption", "text"], None),
        (["title"], "title"),
        (["label"], None),
    ],
)
def test_the_only_usual_name(names, found):
    assert find_name(names) == found
