import pytest

from hf_distinct.data.skips import Skips


def test_one_warning_counts_all_and_names_five(caplog):
    skips = Skips("captions.json")
    for number in range(7):
        skips.add("missing image file", f"{number}.png")
    skips.add("empty caption of image", "17")
    skips.warn()
    assert [record.getMessage() for record in caplog.records] == [
        "captions.json: skipped 7 x missing image file ('0.png', '1.png', '2.png', '3.png', '4.png', ...); "
        "1 x empty caption of image ('17')"
    ]


def test_nothing_skipped_nothing_said(caplog):
    Skips("captions.json").warn()
    assert not caplog.records


def test_strict_raises_at_once():
    with pytest.raises(ValueError, match=r"captions\.json: missing image file: 'a\.png'"):
        Skips("captions.json", strict=True).add("missing image file", "a.png")


def test_notes_are_no_skips(caplog):
    skips = Skips("captions.json", strict=True)
    skips.note("repeated caption of image", "17")
    skips.warn()
    assert [record.getMessage() for record in caplog.records] == [
        "captions.json: found 1 x repeated caption of image ('17')"
    ]
    assert skips.summary() == ""
