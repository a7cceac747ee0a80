"""The strip of numbered pictures."""

import pytest
from PIL import Image

from hf_distinct.reporting.picture_strip import GAP, LINE, SIZE, write_picture_strip

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]


def test_pictures_stand_side_by_side_six_in_a_row_each_above_its_number(tmp_path):
    pictures = [Image.new("RGB", (SIZE, SIZE), COLOURS[place % 3]) for place in range(7)]
    write_picture_strip(pictures, tmp_path / "new" / "strip.png")
    strip = Image.open(tmp_path / "new" / "strip.png")
    assert strip.size == (GAP + 6 * (SIZE + GAP), GAP + 2 * (SIZE + LINE + GAP))
    for place in range(7):
        left, top = GAP + place % 6 * (SIZE + GAP), GAP + place // 6 * (SIZE + LINE + GAP)
        assert strip.getpixel((left, top)) == strip.getpixel((left + SIZE - 1, top + SIZE - 1)) == COLOURS[place % 3]
        number = strip.crop((left, top + SIZE, left + SIZE, top + SIZE + LINE)).convert("L")
        assert number.getextrema()[0] < 60  # there is ink
    assert strip.getpixel((GAP + 3 * (SIZE + GAP), GAP + SIZE + LINE + GAP + 5)) == (255, 255, 255)


def test_other_shapes_keep_theirs(tmp_path):
    write_picture_strip([Image.new("L", (20, 10), 0)], tmp_path / "strip.png")
    strip = Image.open(tmp_path / "strip.png")
    assert strip.getpixel((GAP, GAP)) == (255, 255, 255)
    assert strip.getpixel((GAP, GAP + SIZE // 2)) == (0, 0, 0)


def test_no_pictures(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        write_picture_strip([], tmp_path / "strip.png")
