"""Each source on files in exactly its published form, a thousand pictures of which one is corrupt."""

import logging

import published_forms
import pytest
from datasets import Image

from hf_distinct import ClipScorer
from hf_distinct.data import embed_dataset, load_captions

COUNT, CORRUPT = 1000, 501
CAPTIONS = [["A dock by the sea.", "A boat."], ["Two dogs run.", "Dogs on a beach."], ["A red kite."]]


@pytest.fixture(scope="module")
def pictures():
    encoded = published_forms.jpegs(COUNT)
    encoded[CORRUPT] = encoded[CORRUPT][:300]
    return encoded


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` converts goes into a folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.mark.parametrize("form", published_forms.FORMS)
def test_one_corrupt_picture_in_a_thousand(form, pictures, tiny_models, tmp_path, caplog):
    scorer = ClipScorer(str(tiny_models / "scorer"))
    captions = [CAPTIONS[number % len(CAPTIONS)] for number in range(COUNT)]
    path, root = _write(form, tmp_path, pictures, captions)
    splits = load_captions(path, root)
    assert {name: len(rows) for name, rows in splits.items()} == {
        "coco2014": {"train": COUNT - 2, "validation": 2},
        "coco2017": {"train": COUNT - 2, "validation": 2},
    }.get(form, {"train": COUNT - 2, "validation": 1, "test": 1})
    train = splits["train"]
    assert train.column_names[:3] == ["image", "captions", "image_id"]
    assert isinstance(train.features["image"], Image)
    assert len(set(train["image_id"])) == COUNT - 2
    for row in (0, 400, 996):
        assert train[row]["captions"] == captions[row]
    encoded = train.cast_column("image", Image(decode=False))
    for row in (0, 400, 996):  # as it was on disk, byte by byte
        held = encoded[row]["image"]
        content = held["bytes"] if held["bytes"] is not None else open(held["path"], "rb").read()  # noqa: SIM115
        assert content == pictures[row]
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]

    embedded, embeddings = embed_dataset(train, scorer, batch_size=128)
    assert len(embedded) == len(embeddings) == COUNT - 3
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    name = train.select_columns(["image_id"])[CORRUPT]["image_id"]
    assert "skipped 1 x undecodable image (" in record.getMessage() and f"{name}: " in record.getMessage()
    assert embedded[CORRUPT]["image_id"] == train[CORRUPT + 1]["image_id"]
    with pytest.raises(ValueError, match=f"undecodable image: .{name}: "):
        embed_dataset(train, scorer, batch_size=128, strict=True)


def _write(form, tmp_path, pictures, captions):
    folder = tmp_path / "data"
    folder.mkdir()
    return published_forms.FORMS[form](folder, pictures, captions)


def test_karpathy_coco_restval_joins_train(tmp_path):
    captions = [["A dock."]] * 12
    path, root = _write("karpathy_coco", tmp_path, published_forms.jpegs(12), captions)
    splits = load_captions(path, root)
    assert splits["train"]["image_id"][:] == [str(500000 + number) for number in range(10)]
    assert splits["validation"]["image_id"][:] == ["500010"]
