"""The sheet of captions, read back as a browser reads it."""

import base64
import io
import os
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes

import pytest
from PIL import Image

from hf_distinct.reporting.caption_sheet import write_caption_sheet


class Sheet(HTMLParser):
    """The pictures and the texts below them."""

    def __init__(self, path):
        super().__init__()
        self.pictures, self.texts, self.inside = [], [], False
        self.feed(path.read_text(encoding="utf-8", errors="surrogateescape"))

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.inside = self.inside or tag == "figcaption"

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "figcaption"

    def handle_data(self, data):
        if self.inside:
            self.texts.append(data)


def test_names_and_captions_of_any_kind_come_through(tmp_path):
    strange = os.fsdecode(b'../caf\xe9 #1 "50%".png')  # Latin-1, as old disks have it
    write_caption_sheet([(strange, "a <b> & c"), ("d.png", ["one", "two"])], tmp_path / "sheet.html", title="<x>")
    sheet = Sheet(tmp_path / "sheet.html")
    assert [os.fsdecode(unquote_to_bytes(each["src"])) for each in sheet.pictures] == [strange, "d.png"]
    assert [each["alt"] for each in sheet.pictures] == ["a <b> & c", "one"]
    assert sheet.texts == ["a <b> & c", strange, "one", "two", "d.png"]
    assert "<title>&lt;x&gt;</title>" in (tmp_path / "sheet.html").read_bytes().decode("utf-8", "replace")


def test_a_picture_itself_and_who_says_what(tmp_path):
    said = {"a person": "a dog", "before & after": "<nothing>"}
    write_caption_sheet([(Image.new("RGB", (40, 20), "red"), said)], tmp_path / "sheet.html")
    sheet = Sheet(tmp_path / "sheet.html")
    assert sheet.texts == ["a person", "a dog", "before & after", "<nothing>"]
    (picture,) = sheet.pictures
    assert picture["alt"] == "a dog"
    data = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_a_sheet_of_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_caption_sheet([], tmp_path / "sheet.html")
