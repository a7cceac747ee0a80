"""Caption files as they are published: BLIP's lists, Flickr8k and Flickr30k on Kaggle and as tokens, and others."""

import json

import pytest

from hf_distinct.data import ensure_splits, load_captions
from hf_distinct.data.caption_files import find_caption_files

BLIP = [
    {"caption": "A woman.", "image": "val2014/0.jpg", "image_id": "coco_522418"},
    {"caption": "A cake.", "image": "val2014/0.jpg", "image_id": "coco_522418"},
    {"caption": "A dog.", "image": "val2014/1.jpg", "image_id": "coco_5"},
]
BLIP_VAL = [{"image": "val2014/2.jpg", "caption": ["One.", "Two."]}]


@pytest.fixture
def pictures(picture, tmp_path):
    """Three pictures in a folder of the given name."""

    def write(folder: str, names=("0.jpg", "1.jpg", "2.jpg")):
        for number, name in enumerate(names):
            picture(f"{folder}/{name}", seed=number)
        return tmp_path

    return write


def captions(loaded) -> dict:
    return {split: dict(zip(rows["image_id"], rows["captions"], strict=True)) for split, rows in loaded.items()}


def test_lists_of_blip(pictures):
    folder = pictures("images/val2014")
    (folder / "coco_karpathy_train.json").write_text(json.dumps(BLIP))
    train = {"coco_522418": ["A woman.", "A cake."], "coco_5": ["A dog."]}
    for place, root in [("", None), ("", folder / "images")]:
        assert captions(load_captions(folder / place / "coco_karpathy_train.json", root)) == {"train": train}
    assert captions(load_captions(folder)) == {"train": train}
    (folder / "coco_karpathy_val.json").write_text(json.dumps(BLIP_VAL))
    assert captions(load_captions(folder)) == {"train": train, "validation": {"val2014/2.jpg": ["One.", "Two."]}}
    (folder / "nocaps_val.json").write_text(json.dumps(BLIP_VAL))
    with pytest.raises(ValueError, match=r"contains coco_karpathy_train\.json and nocaps_val\.json: pass one of"):
        load_captions(folder)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"0.jpg": "A.", "1.jpg": ["B.", None]}, {"0.jpg": ["A."], "1.jpg": ["B."]}),
        ({"data": [{"image_id": "0", "reference_strs": ["A.", "B."], "caption_str": "A."}]}, {"0": ["A.", "B."]}),
        ([{"image": "0.jpg", "text": "A.", "style": "s"}], {"0.jpg": ["A."]}),
        ({"annotations": [{"image": "0.jpg", "caption": "A."}]}, {"0.jpg": ["A."]}),
        ({"images": [{"file_name": "0.jpg", "caption": "A.", "id": 3}]}, {"0.jpg": ["A."]}),
        ([{"filename": "0.jpg", "sentences": [{"raw": "A.", "tokens": ["a"]}]}], {"0.jpg": ["A."]}),
    ],
)
def test_other_json(document, expected, pictures, write_json):
    pictures(".")
    assert captions(load_captions(write_json(document))) == {"train": expected}


def test_lines(pictures, tmp_path):
    pictures(".")
    # As Localized Narratives name pictures.
    (tmp_path / "c.jsonl").write_text('{"image_id": "0", "caption": "A.", "dataset_id": "x"}\n')
    train = load_captions(tmp_path / "c.jsonl")["train"]
    assert train["captions"][:] == [["A."]] and train["dataset_id"][:] == ["x"]


KAGGLE = 'image,caption\n0.jpg,A dog runs .\n0.jpg,"A dog, running ."\n1.jpg,A "cat" .\n2.jpg,\n'
# The published file has such a cut row, too.
FLICKR30K = (
    'image_name| comment_number| comment\n0.jpg| 0| A dog, "here" .\n0.jpg| 1| A dog .\n1.jpg| 4   A cut row .\n'
)
TOKENS = '0.jpg#0\tA dog .\n0.jpg#1\tA "dog, here .\n1.jpg#0\tA cat .\n'
OF_TOKENS = {"0.jpg": ["A dog .", 'A "dog, here .'], "1.jpg": ["A cat ."]}


@pytest.mark.parametrize(
    ("name", "folder", "text", "expected"),
    [
        ("captions.txt", "Images", KAGGLE, {"0.jpg": ["A dog runs .", "A dog, running ."], "1.jpg": ['A "cat" .']}),
        ("results.csv", "flickr30k_images", FLICKR30K, {"0.jpg": ['A dog, "here" .', "A dog ."]}),
        ("results_20130124.token", "flickr30k-images", TOKENS, OF_TOKENS),
        ("Flickr8k.token.txt", "Flicker8k_Dataset", TOKENS, OF_TOKENS),
        ("captions.csv", "images", "0.jpg,A dog, running\n", {"0.jpg": ["A dog, running"]}),
        ("captions.tsv", ".", "filepath\ttitle\n0.jpg\t\"A dog\"\n", {"0.jpg": ["A dog"]}),
        ("captions.csv", ".", "file_name;caption\n0.jpg;A dog, here\n", {"0.jpg": ["A dog, here"]}),
        ("captions.csv", ".", "image,captions\n0.jpg,\"['A dog', 'A cat']\"\n", {"0.jpg": ["A dog", "A cat"]}),
    ],
)  # fmt: skip
def test_tables(name, folder, text, expected, pictures, tmp_path, caplog):
    pictures(folder)
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    for path, root in [(tmp_path, None), (tmp_path / name, None), (tmp_path / name, tmp_path / folder)]:
        assert captions(load_captions(path, root)) == {"train": expected}
    assert ("x empty caption of image ('2.jpg')" in caplog.text) == (text == KAGGLE)
    assert ("x empty caption of image ('1.jpg')" in caplog.text) == (text == FLICKR30K)


def test_lists_of_splits_beside_the_tokens(pictures, tmp_path, caplog):
    pictures("Flicker8k_Dataset", [f"{number}.jpg" for number in range(4)])
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    (text / "Flickr8k.token.txt").write_text("".join(f"{i % 4}.jpg#{i // 4}\tcaption {i}\n" for i in range(8)))
    (text / "Flickr8k.lemma.token.txt").write_text("0.jpg#0\tcaption lemma\n")
    for number, split in enumerate(("train", "dev", "test")):
        (text / f"Flickr_8k.{split}Images.txt").write_text(f"{number}.jpg\r\n")
    expected = {
        "train": {"0.jpg": ["caption 0", "caption 4"]}, "validation": {"1.jpg": ["caption 1", "caption 5"]},
        "test": {"2.jpg": ["caption 2", "caption 6"]},
    }  # fmt: skip
    assert captions(load_captions(text)) == captions(load_captions(text, strict=True)) == expected
    assert "1 x image that is not in a split list ('3.jpg')" in caplog.text


def test_carved_splits_never_part_a_picture(pictures, tmp_path):
    pictures(".", [f"{number}.jpg" for number in range(10)])
    rows = "".join(f"{i % 10}.jpg,caption {i},{i}\n" for i in range(50))
    (tmp_path / "captions.csv").write_text("image,caption,image_id\n" + rows)
    splits = ensure_splits(load_captions(tmp_path))
    assert sum(map(len, splits.values())) == 10
    assert all(len(texts) == 5 for part in splits.values() for texts in part["captions"])


def test_numbers_of_tables(pictures, tmp_path):
    pictures(".")
    (tmp_path / "c.csv").write_text("image,caption,n,x,code,m\n0.jpg,A.,1,.5,007,\n1.jpg,B.,,2,008,\n")
    train = load_captions(tmp_path / "c.csv")["train"]
    assert (train["n"][:], train["x"][:], train["code"][:]) == ([1, None], [0.5, 2.0], ["007", "008"])
    assert "m" not in train.column_names  # nothing in it


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.tsv", "a dog\thttp://a.org/a.jpg\n" * 2, r"c\.tsv, line 2: .*image_column .*URLs: download .*img2dataset"),
        ("c.csv", "url,words\nhttp://a,a dog\n", "which of the keys contains the images.*url, words.*2dataset"),
        ("c.csv", "image,words,more\n0.jpg,a,b\n", "the captions.*--caption_column to one of image, words, m"),
        ("c.csv", "image,caption,n\n0.jpg,a dog, here,1\n", r"line 2: 4 cells, but the header has 3: .*e quotes"),
        ("c.csv", "image,caption\n0.jpg,caf\xe9\n", r"c\.csv: line 2 is not UTF-8"),
        ("c.csv", "", r"c\.csv: it contains no images"),
        ("c.json", "5", r"c\.json: expected a list of objects .*found int"),
        ("c.json", '{"a": 1}', r"c\.json: expected a list .*found an object with the keys a"),
        ("c.json", '[{"id": 1, "image": "0.jpg", "conversations": []}]', r"json\[0\]: these are conversations"),
        ("c.json", '[{"image": "0.jpg", "caption": "a"}, {"image": "0.jpg"}]', r"json\[1\]: 'caption' .* is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_said(name, text, message, pictures, tmp_path):
    pictures(".")
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_captions(tmp_path / name)


def test_columns_by_name(pictures, tmp_path):
    pictures(".")
    (tmp_path / "c.csv").write_text("where,said,caption\n0.jpg,A.,x\n")
    train = load_captions(tmp_path / "c.csv", image_column="where", caption_column="said")["train"]
    assert train["captions"][:] == [["A."]] and train["caption"][:] == ["x"]
    with pytest.raises(ValueError, match="a caption file: leave out dataset_config='en'"):
        load_captions(tmp_path / "c.csv", dataset_config="en")
    with pytest.raises(FileNotFoundError, match="no caption file"):
        load_captions(tmp_path / "none.csv")


def test_files_that_are_no_captions_are_passed_over(tmp_path):
    for name in ("readme.txt", "requirements.txt", "trainer.json", "Flickr8k.lemma.token.txt"):
        (tmp_path / name).write_text("x")
    assert find_caption_files(tmp_path) == {}
