import pytest
from PIL import Image

from hf_distinct.reporting.neighbour_sheet import SheetPicture, write_neighbour_sheet


def test_each_image_stands_beside_its_neighbours(tmp_path):
    red, blue = Image.new("RGBA", (30, 10), "red"), Image.new("L", (300, 600))
    own = SheetPicture(red, "a <b>red</b> kite", "id1")
    rows = [[own, SheetPicture(blue, "night", "rank 4, 0.812: id2")], [own]]
    write_neighbour_sheet(rows, tmp_path / "deep" / "sheet.html", summary="mean 0.812\nrank < 5")
    html = (tmp_path / "deep" / "sheet.html").read_text()
    assert html.count("<article>") == 2
    assert html.count("data:image/png;base64,") == 3
    assert "a &lt;b&gt;red&lt;/b&gt; kite" in html and "rank 4, 0.812: id2" in html
    assert "mean 0.812\nrank &lt; 5" in html
    assert html.count("no neighbours") == 1
    assert 'width="160" height="53"' in html and 'width="80" height="160"' in html


def test_no_rows():
    with pytest.raises(ValueError, match="at least one image"):
        write_neighbour_sheet([], "sheet.html")
