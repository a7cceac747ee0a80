"""The sheet of captions, read back as a browser reads it."""

import base64
import io
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_distinct.reporting.caption_sheet import write_caption_sheet


class Sheet(HTMLParser):
    """The pictures and the texts below them."""

    def __init__(self, path):
        super().__init__()
        self.pictures, self.texts, self.inside = [], [], False
        self.feed(path.read_text(encoding="utf-8"))

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
    strange = os.fsdecode(b'caf\xe9 #1 "50%".png')  # Latin-1, as old disks have it
    for name, colour in ((strange, "red"), ("d.png", "blue")):
        Image.new("RGB", (400, 200), colour).save(tmp_path / name)
    rows = [(tmp_path / strange, "a <b> & c"), (tmp_path / "d.png", ["one", "two"])]
    write_caption_sheet(rows, tmp_path / "sheet.html", title="<x>", root=tmp_path, remark="2 & more")
    sheet = Sheet(tmp_path / "sheet.html")
    assert [each["alt"] for each in sheet.pictures] == ["a <b> & c", "one"]
    assert sheet.texts == ["a <b> & c", 'caf\ufffd #1 "50%".png', "one", "two", "d.png"]
    text = (tmp_path / "sheet.html").read_bytes().decode("utf-8", "replace")
    assert "<title>&lt;x&gt;</title>" in text and "<p>2 &amp; more</p>" in text


def test_files_are_copied_into_the_sheet_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3)).astype("uint8")
    Image.fromarray(noise).save(tmp_path / "big.png")
    write_caption_sheet([(tmp_path / "big.png", "noise")], tmp_path / "sheet.html")
    (picture,) = Sheet(tmp_path / "sheet.html").pictures
    data = base64.b64decode(picture["src"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(data)).size == (200, 150)
    assert len(data) < 30_000  # of noise; photographs need less


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


def test_what_strangers_wrote_is_text_on_the_sheet(tmp_path):
    name = "<b>\x1b[2J\u202e.png"
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    write_caption_sheet([(tmp_path / name, '"><script>\x00\n\x1b]0;x\x07')], tmp_path / "sheet.html", root=tmp_path)
    page, sheet = (tmp_path / "sheet.html").read_text(), Sheet(tmp_path / "sheet.html")
    assert sheet.texts == ['"><script>', "<b> .png"] and sheet.pictures[0]["alt"] == '"><script>'
    assert "<script>" not in page and not set("\x00\x1b\x07\u202e") & set(page)
