import copy
import json

import pytest
from datasets import Image
from PIL import Image as PILImage

from hf_distinct.data.coco import load_coco_captions, load_coco_folder, load_karpathy

RAW = ["A wooden dock leading into the ocean.", "A boat ties up to a dock."]


def karpathy(number: int, split: str) -> dict:
    """One item of dataset_coco.json, with all its keys."""
    sentids = [10 * number + place for place in range(len(RAW))]
    return {
        "filepath": "val2014",
        "sentids": sentids,
        "filename": f"COCO_val2014_{number:012d}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [
            {"tokens": raw.lower().rstrip(".").split(), "raw": raw, "imgid": number, "sentid": sentid}
            for raw, sentid in zip(RAW, sentids, strict=True)
        ],
        "cocoid": 522000 + number,
    }


def coco(num_images: int) -> dict:
    """A document with all the keys of captions_val2014.json."""
    images = [
        {
            "license": 4,
            "file_name": f"COCO_val2014_{number:012d}.jpg",
            "coco_url": "http://images.cocodataset.org/val2014/x.jpg",
            "height": 30,
            "width": 40,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": "http://farm7.staticflickr.com/x.jpg",
            "id": 522000 + number,
        }
        for number in range(num_images)
    ]
    # As in the real files, the captions of an image do not stand together.
    annotations = [
        {"image_id": image["id"], "id": 100 * place + number, "caption": raw}
        for place, raw in enumerate(RAW)
        for number, image in enumerate(images)
    ]
    info = {"description": "COCO 2014 Dataset", "url": "", "version": "1.0", "year": 2014}
    return {"info": info, "licenses": [{"url": "", "id": 4, "name": ""}], "images": images, "annotations": annotations}


@pytest.fixture
def pictures(picture):
    return [picture(f"val2014/COCO_val2014_{number:012d}.jpg", seed=number) for number in range(5)]


def test_karpathy_splits_paths_and_ids(pictures, write_json, tmp_path, caplog):
    splits = ["train", "restval", "val", "test", "train"]
    path = write_json({"images": [karpathy(*item) for item in enumerate(splits)], "dataset": "coco"})
    loaded = load_karpathy(path, tmp_path)
    assert {name: rows["image_id"][:] for name, rows in loaded.items()} == {
        "train": ["522000", "522001", "522004"],  # cocoid, not imgid; restval joins train
        "validation": ["522002"],
        "test": ["522003"],
    }
    assert loaded["train"][1]["captions"] == RAW
    assert loaded["train"][1]["image"].tobytes() == PILImage.open(pictures[1]).tobytes()
    encoded = loaded["train"].cast_column("image", Image(decode=False))
    assert encoded[0]["image"] == {"bytes": None, "path": str(pictures[0])}
    assert not caplog.records


def test_the_folder_that_every_filepath_names_is_a_root_too(pictures, write_json, tmp_path):
    path = write_json({"images": [karpathy(number, "train") for number in range(3)]})
    for root in (tmp_path, tmp_path / "val2014"):
        assert len(load_karpathy(path, root)["train"]) == 3
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="none of the 3 images is usable"):
        load_karpathy(path, tmp_path / "elsewhere")


def test_flickr_form_has_no_filepath_and_no_cocoid(pictures, write_json, tmp_path):
    item = karpathy(0, "train")
    del item["cocoid"], item["filepath"]
    path = write_json({"images": [item], "dataset": "flickr8k"})
    assert load_karpathy(path, tmp_path / "val2014")["train"]["image_id"][:] == ["0"]


def test_coco_gathers_captions_by_image(pictures, write_json, tmp_path, caplog):
    loaded = load_coco_captions(write_json(coco(3)), tmp_path / "val2014")
    assert list(loaded) == ["train"]
    assert loaded["train"]["image_id"][:] == ["522000", "522001", "522002"]
    assert loaded["train"]["captions"][:] == [RAW] * 3
    assert not caplog.records


def test_the_image_folder_is_the_files_own_by_default(pictures, write_json):
    document = {"images": [karpathy(0, "train")]}
    assert len(load_karpathy(write_json(document))["train"]) == 1
    with pytest.raises(ValueError, match="image folder 'nowhere' does not exist"):
        load_karpathy(write_json(document), "nowhere")


def test_karpathy_skips_are_counted_and_named(pictures, write_json, tmp_path, caplog):
    pictures[0].unlink()
    items = [karpathy(number, "train") for number in range(4)]
    items[1]["sentences"] = []
    items[2]["sentences"][0]["raw"] = ""
    items[3]["sentences"][1]["raw"] = "word " * 2000
    path = write_json({"images": items})
    loaded = load_karpathy(path, tmp_path)
    assert loaded["train"]["captions"][:] == [RAW[1:], RAW[:1]]
    (record,) = caplog.records
    for told in ("1 x missing image file", "COCO_val2014_000000000000.jpg", "1 x image without a caption ('522001')"):
        assert told in record.getMessage()
    assert "1 x empty caption of image ('522002')" in record.getMessage()
    assert "1 x caption over 1000 characters of image ('522003')" in record.getMessage()
    with pytest.raises(ValueError, match="missing image file"):
        load_karpathy(path, tmp_path, strict=True)


def broken(change) -> dict:
    document = {"images": [karpathy(0, "train"), karpathy(1, "val")]}
    change(document["images"])
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{'images': []}", r"captions\.json: this is not JSON.*line 1 column 2"),
        ([karpathy(0, "train")], r"captions\.json: expected an object with 'images', found list"),
        ({"image": []}, r"'images' \(a list\) is missing; found the keys \['image'\]"),
        ({"images": {}}, "'images' should be a list, found dict"),
        ({"images": []}, "it contains no images"),
        (broken(lambda images: images.__setitem__(1, "x")), r"images\[1\]: expected an object"),
        (broken(lambda images: images[1].pop("filename")), r"images\[1\]: 'filename' \(text\) is missing"),
        (broken(lambda images: images[1].pop("split")), r"images\[1\]: 'split' \(text\) is missing"),
        (broken(lambda images: images[1].update(split="dev")), r"images\[1\]: unknown split 'dev'"),
        (broken(lambda images: images[1].update(filepath=None)), r"images\[1\]: 'filepath' should be text"),
        (broken(lambda images: images[1].pop("sentences")), r"images\[1\]: 'sentences' \(a list or text\) is missing"),
        (
            broken(lambda images: images[1]["sentences"][1].pop("raw")),
            r"images\[1\]: a caption is an object without .*; it has the fields tokens, imgid, sentid",
        ),
        (broken(lambda images: images[1].update(cocoid=None)), r"images\[1\]: 'cocoid' should be text or an integer"),
        (broken(lambda images: images[1].update(cocoid=522000)), r"'522000' appears twice.*images\[0\].*images\[1\]"),
    ],
)
def test_karpathy_of_the_wrong_shape(document, message, pictures, write_json, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_karpathy(write_json(document), tmp_path)


def test_item_without_any_id(pictures, write_json, tmp_path):
    item = karpathy(0, "train")
    del item["cocoid"], item["imgid"]
    with pytest.raises(ValueError, match=r"images\[0\]: 'imgid' .* is missing"):
        load_karpathy(write_json({"images": [item]}), tmp_path)


def test_repeated_karpathy_item_is_one_row(pictures, write_json, tmp_path):
    item = karpathy(0, "train")
    loaded = load_karpathy(write_json({"images": [item, copy.deepcopy(item)]}), tmp_path)
    assert loaded["train"]["captions"][:] == [RAW]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("annotations"), "'annotations' .* is missing"),
        (
            lambda document: document["annotations"][3].pop("caption"),
            r"annotations\[3\]: 'caption' \(a list or text\) is missing",
        ),
        (lambda document: document["annotations"][3].pop("image_id"), r"annotations\[3\]: 'image_id' .* is missing"),
        (lambda document: document["images"][1].pop("file_name"), r"images\[1\]: 'file_name' \(text\) is missing"),
        (lambda document: document["images"][1].pop("id"), r"images\[1\]: 'id' .* is missing"),
        (
            lambda document: document["images"][1].update(id=522000),
            r"'522000' appears twice.*images\[0\].*images\[1\]",
        ),
        (
            lambda document: document["annotations"][3].update(id=0),
            r"annotations\[3\]: annotation id '0' is already used at annotations\[0\]",
        ),
        (lambda document: document["images"].clear(), "it contains no images"),
        (
            lambda document: document["annotations"].clear(),
            "none of the 3 images is usable: 3 x image without a caption",
        ),
    ],
)
def test_coco_of_the_wrong_shape(change, message, pictures, write_json, tmp_path):
    document = coco(3)
    change(document)
    with pytest.raises(ValueError, match=message):
        load_coco_captions(write_json(document), tmp_path / "val2014")


def test_coco_skips_are_counted_and_named(pictures, write_json, tmp_path, caplog):
    document = coco(3)
    document["annotations"][0]["image_id"] = 999
    document["annotations"].append(dict(document["annotations"][1]))
    path = write_json(json.dumps(document))
    loaded = load_coco_captions(path, tmp_path / "val2014")
    assert loaded["train"]["captions"][:] == [RAW[1:], RAW, RAW]
    (record,) = caplog.records
    assert "1 x annotation of an image that is not listed ('999')" in record.getMessage()
    assert "1 x repeated annotation ('1')" in record.getMessage()
    with pytest.raises(ValueError, match="'999'"):
        load_coco_captions(path, tmp_path / "val2014", strict=True)


@pytest.mark.parametrize("empty", [None, float("nan"), "", "nan", [], 5])
def test_missing_captions_are_skipped_and_counted(empty, pictures, write_json, tmp_path, caplog):
    document = coco(2)
    document["annotations"][0]["caption"] = empty
    loaded = load_coco_captions(write_json(document), tmp_path / "val2014")
    assert loaded["train"]["captions"][:] == [RAW[1:], RAW]
    item = karpathy(0, "train")
    item["sentences"] = [{"raw": empty}, None, {"raw": RAW[0]}, RAW[1]]
    assert load_karpathy(write_json({"images": [item]}), tmp_path)["train"]["captions"][:] == [RAW]
    said = "caption that is not text (int) of image" if empty == 5 else "empty caption of image"
    assert empty == [] or caplog.text.count(f"x {said} ('522000'") == 2


def test_what_else_is_said_of_an_image_becomes_columns(pictures, write_json, tmp_path):
    document = coco(2)
    document["images"][1] |= {"domain": "near", "license": None}
    train = load_coco_captions(write_json(document), tmp_path / "val2014")["train"]
    assert (train["domain"][:], train["license"][:], train["height"][:]) == ([None, "near"], [4, None], [30, 30])
    train = load_karpathy(write_json({"images": [karpathy(3, "train")]}), tmp_path)["train"]
    assert train.column_names == ["image", "captions", "image_id", "imgid"] and train["imgid"][:] == [3]


def test_annotations_that_vizwiz_rejected(pictures, write_json, tmp_path, caplog):
    document = coco(2)
    document["annotations"][0] |= {"is_rejected": True, "is_precanned": False}
    document["annotations"][1] |= {"is_rejected": False, "is_precanned": True}
    train = load_coco_captions(write_json(document), tmp_path / "val2014", strict=True)["train"]
    assert train["captions"][:] == [RAW[1:], RAW[1:]]
    assert "2 x annotation that VizWiz rejected, skipped, of image ('522000', '522001')" in caplog.text


@pytest.fixture
def coco_folder(picture, tmp_path):
    """annotations/captions_{train,val}2017.json beside train2017/ and val2017/."""
    (tmp_path / "annotations").mkdir()
    for split, first in (("train2017", 0), ("val2017", 2)):
        document = coco(2)
        for number, image in enumerate(document["images"], start=first):
            image |= {"id": number, "file_name": f"{number:012d}.jpg"}
            picture(f"{split}/{number:012d}.jpg", seed=number)
        for annotation in document["annotations"]:
            annotation["image_id"] += first - 522000
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(json.dumps(document))
    return tmp_path


def test_coco_as_it_unpacks(coco_folder, tmp_path, caplog):
    for place, root in [
        (coco_folder, None), (coco_folder / "annotations", None), (coco_folder / "annotations", coco_folder),
    ]:  # fmt: skip
        loaded = load_coco_folder(place, root)
        assert {name: rows["image_id"][:] for name, rows in loaded.items()} == {
            "train": ["0", "1"],
            "validation": ["2", "3"],
        }
        assert loaded["validation"]["captions"][:] == [RAW] * 2
    one = load_coco_captions(coco_folder / "annotations" / "captions_val2017.json")
    assert one["train"]["image_id"][:] == ["2", "3"]
    assert not caplog.records


def test_coco_of_two_years_or_none(coco_folder, tmp_path):
    folder = coco_folder / "annotations"
    (folder / "captions_train2014.json").write_bytes((folder / "captions_train2017.json").read_bytes())
    with pytest.raises(
        ValueError, match=r"contains captions_train2014\.json and captions_train2017\.json: pass one of"
    ):
        load_coco_folder(coco_folder)
    with pytest.raises(FileNotFoundError, match=r"contains no captions_train2017\.json"):
        load_coco_folder(coco_folder / "train2017")


def test_missing_images_are_named_in_the_folder_given(coco_folder):
    for path in (coco_folder / "val2017").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="none of the 2 images is usable: 2 x missing image file"):
        load_coco_captions(coco_folder / "annotations" / "captions_val2017.json")
