from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, Value
from hypothesis import example
from hypothesis import given as drawn
from hypothesis import strategies as st
from PIL import Image as PILImage

from hf_distinct.data import prepared
from hf_distinct.data.prepared import (
    _odd_rows,
    as_captioned,
    as_evaluated,
    as_pictures,
    dataset_problems,
    readable,
)  # fmt: skip
from hf_distinct.data.skips import Skips
from hf_distinct.data.texts import _is_plain, clean_captions, is_empty, is_storable

PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
TEXTS = {"captions": [["a dog", "a cat"]], "image_id": ["a"]}


def rows(**columns):
    """Two rows, as their source would have them."""
    pictures = [PILImage.fromarray(PIXELS), PILImage.fromarray(PIXELS[::-1].copy())]
    known = {"image": pictures, "captions": [["a dog", "a cat"], ["a bird"]], "image_id": ["a", "b"]}
    return Dataset.from_dict({name: value for name, value in (known | columns).items() if value is not None})


def test_a_data_set_that_is_right_is_returned_as_it_is():
    given = rows(mood=["glad", "sad"])
    found = as_captioned(given, "train_dataset")
    assert found.features == given.features and found._fingerprint == given.with_format(None)._fingerprint
    assert found["captions"][:] == [["a dog", "a cat"], ["a bird"]]


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "train_dataset should be a datasets.Dataset, not None"),
        (Rows(), r"not a Rows. Make one from rows.*datasets.Dataset.from_list\(list\(rows\)\)"),
        ([{"image": None}], "not a list. Make one from rows"),
        (IterableDataset.from_generator(lambda: iter(())), r"not a stream \(IterableDataset\).*without stream"),
        (
            datasets.DatasetDict({"train": rows(), "test": rows()}),
            "not a DatasetDict of 'train', 'test'. Choose one of its splits",
        ),
        (rows().select([]), "train_dataset has no rows"),
        (rows(image=None), "train_dataset has no column 'image' .* it has captions, image_id"),
        (rows(captions=None), "train_dataset has no column 'captions'"),
        (rows(image_id=None), "train_dataset has no column 'image_id'"),
        (rows(captions=[1, 2]), "column 'captions' should contain a text or a list of texts per row; it is Value"),
        (rows(captions=[[["a"]], [["b"]]]), "column 'captions' should contain"),
        (rows(image_id=[0.5, 1.5]), "column 'image_id' should contain texts or integers"),
        (rows(image_id=["a", None]), "row 1 has no image_id"),
        (rows(image_id=["a", " "]), "row 1 has no image_id"),
        (rows(image=[1, 2]), "column 'image' should contain images"),
        (rows(image=[(PIXELS / 255).tolist()] * 2), "column 'image' should contain images"),
        (rows(image=[PIXELS.transpose(2, 0, 1)] * 2), "column 'image' cannot be read as images"),
        (rows().cast_column("image", Image(mode="L")), "column 'image' is converted to mode 'L'"),
        (rows().with_transform(lambda batch: batch), r"train_dataset has a transform .*use dataset.map"),
        (rows(captions=[["."], []]), "no row has a usable caption: 1 x empty caption of image"),
        (rows(image_id=["a", "a"]), "image_id 'a' is used for two images, in rows 0 and 1"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(given, message):
    with pytest.raises(ValueError, match=f"^train_dataset.*{message}|^{message}"):
        as_captioned(given, "train_dataset")


def test_all_problems_are_told_one_by_one():
    problems = list(dataset_problems(rows(image=None, captions=[1, 2], image_id=[0.5, 1.5]), "eval_dataset"))
    assert len(problems) == 3 and all(problem.startswith("eval_dataset") for problem in problems)


def test_one_text_a_row_is_one_caption_not_its_letters():
    found = as_captioned(rows(captions=["a dog", "a bird"]), "train_dataset")
    assert found["captions"][:] == [["a dog"], ["a bird"]]
    assert found.features["captions"] == datasets.List(Value("string"))


def test_empty_captions_are_left_out_counted_and_named(caplog):
    given = rows(captions=[[None, " a dog ", "", "."], ["a bird"]])
    found = as_captioned(given, "train_dataset")
    assert found["captions"][:] == [["a dog"], ["a bird"]] and len(found["image"]) == 2
    assert "train_dataset: skipped 3 x empty caption of image ('a', 'a', 'a')" in caplog.text
    with pytest.raises(ValueError, match="train_dataset: empty caption of image: 'a'"):
        as_captioned(given, "train_dataset", strict=True)


@pytest.mark.parametrize("empty", [None, [], [None]])
def test_rows_without_a_caption_are_left_out(empty, caplog):
    found = as_captioned(rows(captions=[empty, ["a bird"]], mood=["glad", "sad"]), "train_dataset")
    assert found["image_id"][:] == ["b"] and found["mood"][:] == ["sad"]
    assert "1 x image without a caption ('a')" in caplog.text


def test_nothing_but_a_null_in_the_place_of_a_text():
    found = as_captioned(rows(captions=[None, "a bird"]), "train_dataset")
    assert found["captions"][:] == [["a bird"]]


def test_integers_as_image_ids_become_texts():
    found = as_captioned(rows(image_id=[7, 11]), "train_dataset")
    assert found["image_id"][:] == ["7", "11"] and found.features["image_id"] == Value("string")


def test_rows_of_one_picture_become_one(caplog):
    same = [PILImage.fromarray(PIXELS)] * 2 + [PILImage.fromarray(PIXELS + 1)]
    captions, ids = ["a dog", "a cat", "a bird"], [5, 5, 6]
    found = as_captioned(Dataset.from_dict({"image": same, "captions": captions, "image_id": ids}), "train_dataset")
    assert found["captions"][:] == [["a dog", "a cat"], ["a bird"]] and found["image_id"][:] == ["5", "6"]
    assert "1 rows repeat the image of an earlier row; their captions are added to that row ('5')" in caplog.text


@pytest.mark.parametrize("form", ["path", "bytes", "struct", "array", "tensor", "decode=False"])
def test_pictures_in_every_form(form, tmp_path):
    picture, path = PILImage.fromarray(PIXELS), tmp_path / "a.png"
    picture.save(path)
    value = {
        "path": str(path), "bytes": path.read_bytes(), "struct": {"bytes": path.read_bytes(), "path": None},
        "array": PIXELS, "tensor": torch.from_numpy(PIXELS), "decode=False": picture,
    }[form]  # fmt: skip
    given = Dataset.from_dict({"image": [value], **TEXTS})
    if form == "decode=False":
        given = given.cast_column("image", Image(decode=False))
    found = as_captioned(given, "train_dataset")
    assert found.features["image"] == Image() and np.array_equal(np.asarray(found[0]["image"]), PIXELS)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_a_format_is_taken_off(kind):
    found = as_captioned(rows(image_id=[1, 2]).with_format(kind), "train_dataset")
    assert found[0]["captions"] == ["a dog", "a cat"] and found[0]["image_id"] == "1"
    assert isinstance(found[0]["image"], PILImage.Image)


def test_what_is_evaluated_needs_no_more_than_pictures():
    given = rows(captions=None, image_id=None, neighbours=[[1], [0]])
    assert as_evaluated(given, "eval_dataset").column_names == ["image"]
    with pytest.raises(ValueError, match="eval_dataset has no column 'image'"):
        as_evaluated(rows(image=None), "eval_dataset")


def test_rows_of_pictures_stay_where_they_are():
    given = rows(captions=[None, ["a bird"]], image_id=["a", "a"])
    assert len(as_pictures(given, "dataset")) == 2


def test_pictures_that_cannot_be_read_are_left_out(caplog):
    given = rows(image=[{"bytes": b"no picture", "path": None}, {"bytes": None, "path": "nowhere.png"}])
    found = as_captioned(given, "gallery")
    with pytest.raises(ValueError, match="gallery: none of the 2 images can be decoded: 2 x undecodable image"):
        readable(found, "gallery")
    mixed = datasets.concatenate_datasets([found.select([0]), as_captioned(rows(), "gallery").select([1])])
    assert readable(mixed, "gallery")["image_id"][:] == ["b"]
    assert "gallery: skipped 1 x undecodable image (" in caplog.text
    with pytest.raises(ValueError, match="gallery: undecodable image: 'a: image stored as bytes"):
        readable(mixed, "gallery", strict=True)
    assert len(readable(as_captioned(rows(), "gallery"), "gallery")) == 2


def test_what_was_prepared_is_not_read_again(monkeypatch):
    found = as_captioned(rows(captions=[" a dog", "a bird"]), "train_dataset")
    monkeypatch.setattr(prepared, "batches", None)
    assert as_captioned(found, "train_dataset")["captions"][:] == [["a dog"], ["a bird"]]
    with pytest.raises(TypeError):
        as_captioned(found.select([0]), "train_dataset")


def test_paths_that_pictures_had_stay_as_they_were(tmp_path):
    """The name of a cache depends on them."""
    PILImage.fromarray(PIXELS).save(tmp_path / "a.png")
    features = Features({"image": Image(), "captions": [Value("string")], "image_id": Value("string")})
    given = Dataset.from_dict({"image": [str(tmp_path / "a.png")], **TEXTS}, features=features)
    found = as_captioned(given, "train_dataset").cast_column("image", Image(decode=False))
    assert found[0]["image"] == {"bytes": None, "path": str(tmp_path / "a.png")}


WORDS = st.sampled_from(
    ["nan", "None", "<na>", "a", "dog", ".", "...", " ", "  ", "\t", "\ufeff", "é", '["', '", "', '"]', "x" * 600]
)


@example([['["a dog", "a cat"]']])  # two captions
@example([["nan ."], ["nan .."]])
@drawn(st.lists(st.lists(st.lists(WORDS, max_size=5).map("".join), max_size=3), min_size=1, max_size=5))
def test_what_is_passed_over_needs_no_cleaning(captions):
    """Two quick tests, of strings and of Arrow arrays, pass over most captions: none that would be changed."""
    skips = Skips("captions")
    for text in (text for own in captions for text in own if _is_plain(text)):
        assert not is_empty(text) and is_storable(text) and text == text.strip() and len(text) <= 1000
    kept = set(range(len(captions))) - set(_odd_rows(pa.array(captions, pa.list_(pa.string()))).tolist())
    for row in kept:
        assert clean_captions(captions[row], "", skips) == captions[row]
    assert not skips.names
