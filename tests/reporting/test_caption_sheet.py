"""The sheet of captions, read back as a browser reads it."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from hf_distinct.reporting import caption_sheet
from hf_distinct.reporting.caption_sheet import write_caption_sheet


class Sheet(HTMLParser):
    """The pictures and the texts below them."""

    def __init__(self, path):
        super().__init__()
        self.pictures, self.texts, self.inside, self.script = [], [], False, None
        self.feed(path.read_text(encoding="utf-8"))
        if self.script is not None:  # the parts, in the order in which the script loads them
            parts, folder = re.search(r"parts = (\d+), folder = (.*), end", self.script).groups()
            for number in range(1, int(parts) + 1):
                part = path.with_name(unquote(json.loads(folder))) / f"{number}.js"
                (figures,) = re.fullmatch(r"show\((.*)\);\n", part.read_text(encoding="ascii")).groups()
                self.feed(json.loads(figures))

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
        self.inside = self.inside or tag == "figcaption"

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "figcaption"

    def handle_data(self, data):
        if self.inside:
            self.texts.append(data)
        elif self.get_starttag_text() == "<script>" and data.strip():
            self.script = data


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


@pytest.fixture
def rows(monkeypatch):
    """Nine images, each with its own caption, for pages of four."""
    monkeypatch.setattr(caption_sheet, "IN_ONE_FILE", 4)
    return [(Image.new("RGB", (8, 8), (20 * i, 0, 0)), f'{i} </script><img> "é" \u2028') for i in range(9)]


def test_many_images_are_in_parts_beside_the_page(tmp_path, rows):
    path = tmp_path / 'a "page" #1.html'
    write_caption_sheet(iter(rows), path)
    whole = Sheet(path)
    assert [text[0] for text in whole.texts] == [each["alt"][0] for each in whole.pictures] == list("012345678")
    assert all(text[1:] == ' </script><img> "é"' for text in whole.texts)
    assert sorted(each.name for each in tmp_path.glob("*/*")) == ["1.js", "2.js"]
    assert path.read_text().count("<figure>") == 4
    for name in ("1.js", "2.js"):  # nothing of a stranger is markup
        assert "<script" not in (tmp_path / 'a "page" #1.parts' / name).read_text()


def test_up_to_a_page_of_images_is_one_file(tmp_path, rows):
    write_caption_sheet(rows[:4], tmp_path / "page.html")
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    assert "script" not in (tmp_path / "page.html").read_text().replace("&lt;/script", "")


def test_a_smaller_page_leaves_no_parts_of_the_one_before(tmp_path, rows):
    path = tmp_path / "page.html"
    for count, parts in ((9, ["1.js", "2.js"]), (6, ["1.js"]), (2, [])):
        write_caption_sheet(rows[:count], path)
        assert len(Sheet(path).pictures) == count
        assert sorted(each.name for each in tmp_path.glob("page.parts/*")) == parts
    assert not (tmp_path / "page.parts").exists()


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_script_loads_each_part_once_and_in_order(tmp_path, rows):
    """The window shows the end after each part, and then once more."""
    write_caption_sheet(rows, tmp_path / "page.html")
    shown = """
    const main = [], loaded = [], fs = require("fs"); let observed = null, removed = false;
    class IntersectionObserver {
      constructor(seen) { this.seen = seen; }
      observe(each) { observed = each; setTimeout(() => observed && this.seen([{ isIntersecting: true }]), 1); }
      unobserve() { observed = null; }
    }
    const document = {
      getElementById: () => ({ remove() { removed = true; } }),
      querySelector: () => ({ insertAdjacentHTML: (where, figures) => main.push(figures) }),
      createElement: () => ({}),
      head: { append({ src }) { loaded.push(src); setTimeout(() => eval(fs.readFileSync(src, "utf8"))); } },
    };
    process.on("exit", () => console.log(JSON.stringify({ main, loaded, removed })));
    """ + Sheet(tmp_path / "page.html").script
    done = subprocess.run(["node", "-e", shown], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["loaded"] == ["page.parts/1.js", "page.parts/2.js"] and found["removed"]
    assert [part.count("<figure>") for part in found["main"]] == [4, 1]
