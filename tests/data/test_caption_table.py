import os
import pickle
import random
import shutil

import pytest
from datasets import config

from hf_distinct.data import caption_table, load_captions
from hf_distinct.data.arrow_files import CaptionFiles
from hf_distinct.data.caption_table import CaptionTable


def test_captions_are_cleaned_and_every_skip_is_told(picture, caplog):
    table = CaptionTable("source")
    captions = ["  A cat. \n", "", " . ", "...", "\u3000", "x" * 10_000, "x" * 1000, "x" * 1001, "\ud83d", "日本"]
    table.add("1", picture("1.png"), captions, "train", "row 1")
    table.add("2", picture("2.png"), ["", "y" * 10_000], "train", "row 2")
    table.add("3", picture("3.png"), [], "train", "row 3")
    splits = table.finish()
    assert splits["train"]["image_id"][:] == ["1"]
    assert splits["train"]["captions"][0] == ["A cat.", "x" * 1000, "日本"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "source: skipped 5 x empty caption of image ('1', '1', '1', '1', '2'); "
        "3 x caption over 1000 characters of image ('1', '1', '2'); "
        "1 x caption with a broken character (lone surrogate) of image ('1'); "
        "2 x image without a caption ('2', '3')"
    )


@pytest.mark.parametrize("captions", [["a", ""], ["a", "x" * 1001], []])
def test_strict_makes_each_an_error(captions, picture):
    table = CaptionTable("source", strict=True)
    table.add("17", picture("1.png"), captions, "train", "row 1")
    with pytest.raises(ValueError, match="source: .*'17'"):
        table.finish()


def test_relative_paths_outlive_a_change_of_folder(picture, monkeypatch, tmp_path):
    monkeypatch.chdir(picture("deep/1.png").parent)
    table = CaptionTable("source")
    table.add("1", "1.png", ["a"], "train", "row 1")
    loaded = table.finish()
    monkeypatch.chdir(tmp_path)
    assert loaded["train"][0]["image"].size == (40, 30)


def test_same_id_and_file_merges_new_captions(picture):
    table = CaptionTable("source")
    path = picture("1.png")
    table.add("1", path, ["a", "b", "b"], "train", "row 1")
    table.add("1", path.parent / "." / "1.png", ["b", "c"], "train", "row 2")
    assert table.finish()["train"]["captions"][:] == [["a", "b", "b", "c"]]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("2.png", "train", r"id '1' appears twice: row 1 .*row 2"),
        ("1.png", "test", r"1\.png' appears twice: row 1 \(train\) and row 2 \(test\)"),
    ],
)
def test_same_id_elsewhere_is_an_error_that_names_both_rows(name, split, message, picture):
    table = CaptionTable("source")
    table.add("1", picture("1.png"), ["a"], "train", "row 1")
    table.add("1", picture(name), ["b"], split, "row 2")
    with pytest.raises(ValueError, match=message):
        table.finish()


def test_a_lost_split_is_told(picture, tmp_path, caplog):
    table = CaptionTable("source")
    table.add("1", picture("1.png"), ["a"], "train", "row 1")
    table.add("2", tmp_path / "none.png", ["a"], "validation", "row 2")
    assert list(table.finish()) == ["train"]
    assert "1 x split without any usable image ('validation')" in caplog.text
    assert "none.png" in caplog.text


def test_no_images_and_no_usable_images(tmp_path):
    table = CaptionTable("source")
    with pytest.raises(ValueError, match="source: it contains no images"):
        table.finish()
    for number in range(7):
        table.add(str(number), tmp_path / f"{number}.png", ["a"], "train", f"row {number}")
    with pytest.raises(ValueError, match=r"none of the 7 images is usable: 7 x missing image file .*image folder"):
        table.finish()


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="row 1: unknown split 'dev'"):
        CaptionTable("source").add("1", tmp_path / "1.png", ["a"], "dev", "row 1")


def test_another_id_of_the_same_file_merges(picture):
    table = CaptionTable("source")
    for row in range(3):
        table.add(str(row), picture("1.png"), [f"caption {row}"], "train", f"row {row}")
    train = table.finish()["train"]
    assert train["captions"][:] == [["caption 0", "caption 1", "caption 2"]] and train["image_id"][:] == ["0"]


@pytest.fixture
def few_rows(tmp_path, monkeypatch):
    """A table of more than three rows is written to files, in a cache of this test."""
    monkeypatch.setattr(caption_table, "BATCH_ROWS", 3)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


def fill(table, rows):
    for number, (image_id, file, captions, split, further) in enumerate(rows):
        table.add(image_id, file, captions, split, f"row {number}", further)
    return table.finish()


@pytest.mark.parametrize("seed", range(5))
def test_many_rows_give_the_same_as_few(seed, picture, few_rows, monkeypatch, caplog):
    """Rows of an image may be far from each other, lack files or captions, and differ in further columns."""
    draw = random.Random(seed)
    files = {number: picture(f"{number}.png") for number in range(8) if number % 4}
    rows = []
    for _ in range(40):
        number = draw.randrange(8)
        captions = draw.sample(["a dog", " a cat ", "", "two birds", None, 5], k=draw.randrange(4))
        further = {"size": number, "by": draw.choice("xy")} if seed % 2 else {}
        file = files.get(number, f"/none/{number}.png")
        rows.append((f"{number}-{draw.randrange(2)}", file, captions, ("train", "test")[number % 2], further))
    found = []
    for batch in (3, 1000):
        monkeypatch.setattr(caption_table, "BATCH_ROWS", batch)
        caplog.clear()
        splits = fill(CaptionTable("source", files=CaptionFiles([], batch)), rows)
        assert all(bool(each.cache_files) == (batch == 3) for each in splits.values())
        told = [record.getMessage() for record in caplog.records]
        found.append(({split: list(each.remove_columns("image")) for split, each in splits.items()}, told))
        assert [os.path.basename(each["path"]) for each in splits["train"].data["image"].to_pylist()]
    assert found[0] == found[1] and found[0][1]


def test_a_column_that_differs_among_the_rows_of_an_image_is_left_out(picture, few_rows, caplog):
    rows = [(f"{n}", picture(f"{n % 4}.png"), [f"a dog {n}"], "train", {"size": n % 4, "by": n}) for n in range(9)]
    train = fill(CaptionTable("source", files=CaptionFiles([])), rows)["train"]
    assert train.column_names == ["image", "captions", "image_id", "size"] and train["size"][:] == [0, 1, 2, 3]
    assert train["captions"][0] == ["a dog 0", "a dog 4", "a dog 8"] and "ignored 'by'" in caplog.text


def test_what_was_read_is_found_by_the_next_run(picture, few_rows, tmp_path, monkeypatch, caplog):
    for number in range(7):
        picture(f"{number}.png")
    listed = tmp_path / "captions.csv"
    listed.write_text("image,caption,by\n" + "".join(f"{n}.png,a dog {n},{n // 2}\n" for n in (*range(7), 8, 2)))

    def load(caplog=caplog):
        caplog.clear()
        splits = load_captions(listed)
        return list(splits["train"].remove_columns("image")), [record.getMessage() for record in caplog.records]

    first = load()
    assert "missing image file" in first[1][0] and "by" in first[1][1]
    with monkeypatch.context() as patched:
        patched.setattr(CaptionTable, "add", None)
        assert load() == first
    again = load_captions(listed)
    assert len(pickle.dumps(again)) < 10_000  # names of files, which any process maps

    picture("8.png")  # was missing
    assert [row["image_id"] for row in load()[0]][-1] == "8.png"
    picture("3.png").unlink()
    assert "3.png" not in [row["image_id"] for row in load()[0]]
    listed.write_text("image,caption\n" + "".join(f"{n}.png,a cat\n" for n in range(6)))
    assert {row["captions"][0] for row in load()[0]} == {"a cat"}
    assert not list((tmp_path / "cache" / "hf_distinct").glob("unfinished-*"))


def cut(content):
    return content[:-40]


def flip(content):
    """Change a letter of a caption, which Arrow would not notice."""
    assert b"a dog" in content
    return content.replace(b"a dog", b"a dig", 1)


@pytest.mark.parametrize("damage", [cut, flip])
def test_broken_files_are_read_again(damage, picture, few_rows, tmp_path, caplog):
    for number in range(5):
        picture(f"{number}.png")
    (tmp_path / "captions.csv").write_text("image,caption\n" + "".join(f"{n}.png,a dog\n" for n in range(5)))
    before = list(load_captions(tmp_path / "captions.csv")["train"]["captions"])
    (kept,) = (tmp_path / "cache" / "hf_distinct").glob("captions-*/train.arrow")
    kept.write_bytes(damage(kept.read_bytes()))
    assert list(load_captions(tmp_path / "captions.csv")["train"]["captions"]) == before
    assert "are unusable and are read again" in caplog.text


def test_an_image_that_becomes_a_link_out_of_the_folder_is_refused(picture, few_rows, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for number in range(5):
        picture(f"own/{number}.png")
    (own / "captions.csv").write_text("image,caption\n" + "".join(f"{n}.png,a dog\n" for n in range(5)))
    load_captions(own / "captions.csv")
    outside = shutil.copy2(own / "3.png", tmp_path / "outside.png")  # of the same size and time
    (own / "3.png").unlink()
    (own / "3.png").symlink_to(outside)
    with pytest.raises(ValueError, match="outside.png"):
        load_captions(own / "captions.csv")
