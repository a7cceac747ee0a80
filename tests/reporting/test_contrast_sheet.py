"""The contrast sheet: what the HTML says, that nothing leaves the page, and that text fits."""

from __future__ import annotations

import base64
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from hf_distinct.reporting import ContrastRow, write_contrast_sheet
from hf_distinct.reporting.contrast_png import dejavu, wrap
from hf_distinct.reporting.picture import fit_image

RED, BLUE = Image.new("RGB", (64, 64), "red"), Image.new("RGBA", (30, 50), (0, 0, 255, 128))
ROW = ContrastRow(
    image=RED,
    similar=[BLUE, Image.new("L", (1, 1)), Image.new("P", (700, 20))],
    reference='<script>alert("1 & 2")</script>',
    before="a square",
    before_rank=3,
    after="a red square",
    after_rank=1,
    gallery_size=8,
)


class Page(HTMLParser):
    """What a reader of the page gets: its words, its pictures, and every address that it names."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.images: list[Image.Image] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "src":
                kind, data = value.split(",", 1)
                assert kind == "data:image/png;base64"
                self.images.append(Image.open(BytesIO(base64.b64decode(data))))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def write(tmp_path, rows, **settings):
    html_path, png_path = tmp_path / "new" / "sheet.html", tmp_path / "new" / "sheet.png"
    write_contrast_sheet(rows, html_path, png_path, **settings)
    source = html_path.read_text(encoding="utf-8")
    return source, Page(source), Image.open(png_path)


def test_html_says_everything_and_is_escaped(tmp_path):
    source, page, _ = write(tmp_path, [ROW], title="Ours <vs> theirs", subtitle="8 images & 1 judge")
    assert "Ours <vs> theirs 8 images & 1 judge Rank: a CLIP model orders" in page.text
    assert 'Person <script>alert("1 & 2")</script>' in page.text
    assert "Before ✗ rank 3 of 8 a square After ✓ rank 1 of 8 a red square" in page.text
    assert "script" not in page.tags and "vs" not in page.tags
    assert not {"link", "iframe", "object"} & set(page.tags) and "http" not in source and "url(" not in source


def test_html_holds_the_pictures(tmp_path):
    _, page, _ = write(tmp_path, [ROW])
    own, transparent, dot, wide = page.images
    assert own.size == (256, 256) and own.getpixel((9, 9)) == (255, 0, 0)
    # Without its transparency, as the captioner saw it.
    assert transparent.size == (77, 128) and transparent.getpixel((9, 9)) == (0, 0, 255)
    assert dot.size == (128, 128)
    assert wide.size == (128, 4)


def test_png_holds_the_pictures_and_marks(tmp_path):
    _, _, sheet = write(tmp_path, [ROW])
    assert sheet.width == 1600
    assert [colour for count, colour in sheet.getcolors(1 << 20) if colour == (255, 0, 0) and count == 256 * 256]
    # Without colour: the sheet in grey still differs when only the rank does.
    _, _, other = write(tmp_path, [replace(ROW, after_rank=2)])
    assert ImageChops.difference(sheet.convert("L"), other.convert("L")).getbbox()


def test_without_gallery_size_or_similar_images(tmp_path):
    source, page, sheet = write(tmp_path, [replace(ROW, gallery_size=0, similar=[])])
    assert "Before ✗ rank 3 a square" in page.text and "Most similar" not in page.text
    assert len(page.images) == 1 and sheet.width == 1600


def test_odd_texts(tmp_path):
    # A line break, a lone surrogate (from broken JSON), nothing at all.
    row = replace(ROW, reference="two\nlines\x00", before="\ud83d", after="")
    _, page, _ = write(tmp_path, [row])
    assert "Person two lines Before ✗ rank 3 of 8 \ufffd After ✓ rank 1 of 8 (no words)" in page.text


@pytest.mark.parametrize("text", ["long words " * 90, "x" * 900, "W" * 900])
def test_long_texts_make_the_sheet_longer_and_stay_inside(tmp_path, text):
    _, _, short = write(tmp_path, [ROW])
    _, _, long = write(tmp_path, [replace(ROW, after=text)], title=text)
    assert long.height > short.height + 200
    margin = long.crop((long.width - 48, 0, long.width, long.height)).convert("L")
    assert margin.getextrema() == (255, 255)
    assert long.crop((0, long.height - 20, long.width, long.height)).convert("L").getextrema() == (255, 255)


def test_many_similar_images_leave_room_for_text(tmp_path):
    _, page, sheet = write(tmp_path, [replace(ROW, similar=[RED] * 20)])
    assert len(page.images) == 21
    assert sheet.width > 1600 and sheet.height < 700
    assert sum(count for count, colour in sheet.getcolors(1 << 20) if colour == (255, 0, 0)) == 256**2 + 20 * 128**2


@given(st.text(alphabet="abW .-", max_size=80), st.integers(40, 300))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    font = dejavu(26, False)
    lines = wrap(text, font, width)
    assert all(font.getlength(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_small_pictures_stay_sharp():
    # Two pixels become two even halves: nothing between black and white.
    picture = Image.new("RGB", (2, 2), "white")
    picture.putpixel((0, 0), (0, 0, 0))
    assert sorted(fit_image(picture, 128).getcolors()) == [(64 * 64, (0, 0, 0)), (3 * 64 * 64, (255, 255, 255))]


@pytest.mark.parametrize("rank", [0, -1, 9])
@pytest.mark.parametrize("name", ["before_rank", "after_rank"])
def test_impossible_rank(name, rank):
    with pytest.raises(ValueError, match=f"{name} is {rank}"):
        replace(ROW, **{name: rank})


def test_no_rows(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        write_contrast_sheet([], tmp_path / "a.html", tmp_path / "a.png")
