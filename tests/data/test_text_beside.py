import pytest

from hf_distinct.data import load_captions, load_text_beside


@pytest.fixture
def write(picture, tmp_path):
    """Writes pictures, each with its text file: {"a.png": ("a.txt", content)}."""

    def write(files: dict):
        for number, (name, beside) in enumerate(files.items()):
            picture(name, seed=number)
            if beside is not None:
                content = beside[1]
                (tmp_path / beside[0]).write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return write


def test_one_caption_a_line(write):
    folder = write(
        {
            "0.png": ("0.txt", "a red dog\r\n\r\n a dog \r\n"),
            "sub/1.JPG": ("sub/1.caption", "\ufeffa cat"),
            "2.jpg": ("2.jpg.txt", "a cow"),
            "3.png": ("3.txt", "un café".encode("utf-16")),
        }
    )
    train = load_captions(folder)["train"]
    assert dict(zip(train["image_id"], train["captions"], strict=True)) == {
        "0.png": ["a red dog", "a dog"], "2.jpg": ["a cow"], "3.png": ["un café"], "sub/1.JPG": ["a cat"],
    }  # fmt: skip
    assert train[0]["image"].size == (40, 30)


def test_folders_of_splits(write):
    folder = write({f"{split}/0.png": (f"{split}/0.txt", split) for split in ("train", "val", "test", "dogs")})
    assert {name: rows["captions"][:] for name, rows in load_captions(folder).items()} == {
        "train": [["dogs"], ["train"]], "validation": [["val"]], "test": [["test"]],
    }  # fmt: skip


def test_what_is_left_out_is_counted_and_named(write, caplog):
    folder = write({"0.png": ("0.txt", "a"), "1.png": None, "2.png": ("2.txt", b"caf\xe9"), "3.png": ("3.txt", " \n")})
    (folder / "readme.txt").write_text("of somebody")
    assert load_text_beside(folder)["train"]["image_id"][:] == ["0.png"]
    for said in (
        "1 x image without a text file ('1.png')", "1 x caption file that is not UTF-8 (save it as UTF-8) ('2.txt')",
        "1 x image without a caption ('3.png')", "found 1 x text file without an image ('readme.txt')",
    ):  # fmt: skip
        assert said in caplog.text
    with pytest.raises(ValueError, match=r"image without a text file: '1\.png'"):
        load_text_beside(folder, strict=True)


def test_settings_without_a_use_are_refused(write):
    folder = write({"0.png": ("0.txt", "a")})
    with pytest.raises(ValueError, match="a folder of images with texts: leave out caption_column='x'"):
        load_captions(folder, caption_column="x")


def test_pictures_without_any_text(write):
    with pytest.raises(ValueError, match=r"no \.txt files next to images"):
        load_captions(write({"0.png": None}))
