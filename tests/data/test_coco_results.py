"""COCO results and references: read, written, and refused with file and row."""

from __future__ import annotations

import json

import pytest

from hf_distinct.data.coco_results import match_image_ids, read_coco_references, read_coco_results, write_coco_results


def test_there_and_back(tmp_path):
    file = tmp_path / "results.json"
    write_coco_results(file, ["42", "007", "test-1"], ["a dog", "", "café"])
    assert [row["image_id"] for row in json.loads(file.read_text())] == [42, "007", "test-1"]
    assert read_coco_results(file) == {"42": "a dog", "007": "", "test-1": "café"}


def test_references_are_gathered_by_image(tmp_path):
    file = tmp_path / "captions.json"
    rows = [(2, "a cat"), (1, "a dog"), (2, "the cat")]
    file.write_text(json.dumps({"annotations": [{"image_id": i, "caption": text} for i, text in rows]}))
    assert list(read_coco_references(file).items()) == [("2", ["a cat", "the cat"]), ("1", ["a dog"])]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_coco_results, {}, "results.json: expected a list"),
        (read_coco_results, [], "results.json: expected a list"),
        (read_coco_results, [{"image_id": 1, "caption": "a"}, {"image_id": 2}], "row 1: 'caption' .*is missing"),
        (read_coco_results, [{"image_id": 1, "caption": 5}], "row 0: 'caption' should be text"),
        (read_coco_results, [{"image_id": 1, "caption": "a"}] * 2, "row 1: image 1 already has a caption"),
        (
            read_coco_results, [{"image_id": 1, "caption": "a" * 1001}],
            "row 0: the caption of image 1 has 1001 characters, but at most 1000 are allowed",
        ),
        (
            read_coco_references, {"annotations": [{"image_id": 1, "caption": "a" * 1001}]},
            r"annotations\[0\]: the caption of image 1 has 1001 characters, but at most 1000",
        ),
        (read_coco_references, {"images": []}, "results.json: 'annotations' .*is missing"),
        (read_coco_references, {"annotations": []}, "there are no annotations"),
        (read_coco_references, {"annotations": [{"image_id": 1}]}, r"annotations\[0\]: 'caption'"),
    ],
)
def test_what_is_refused(read, content, message, tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read(file)


def test_missing_captions_are_counted_and_named(tmp_path, caplog):
    rows = [{"image_id": i + 1, "caption": caption} for i, caption in enumerate((None, float("nan"), "a"))]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert read_coco_results(tmp_path / "results.json") == {"1": "", "2": "", "3": "a"}
    (tmp_path / "references.json").write_text(json.dumps({"annotations": [*rows, {"image_id": 1.0, "caption": "b"}]}))
    assert read_coco_references(tmp_path / "references.json") == {"3": ["a"], "1": ["b"]}
    assert caplog.text.count("skipped 2 x missing caption (null or NaN) of image ('1', '2')") == 2
    (tmp_path / "references.json").write_text(json.dumps({"annotations": rows[:2]}))
    with pytest.raises(ValueError, match="there are no annotations with a caption"):
        read_coco_references(tmp_path / "references.json")


IMAGE_IDS = ["1", "42", "1000268201_693b08cb0e.jpg", "a/7.png", "b/7.png"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("42", "42"),
        ("COCO_val2014_000000000042.jpg", "42"),
        ("val2014/COCO_val2014_000000000042.jpg", "42"),
        ("000000000042.jpg", "42"),
        ("000042", "42"),
        ("1000268201_693b08cb0e", "1000268201_693b08cb0e.jpg"),
        ("C:\\flickr\\1000268201_693b08cb0e.jpg", "1000268201_693b08cb0e.jpg"),
        ("b/7.png", "b/7.png"),
    ],
)
def test_an_image_is_known_by_its_id_however_it_is_written(written, meant):
    assert match_image_ids({written: "a dog"}, IMAGE_IDS, "ours.json") == {meant: "a dog"}


def test_captions_of_other_images_are_named(caplog):
    captions = {"1": "a dog", "5": "b", "7.png": "which of the two", "420": "c", "x_42": "d"}
    with caplog.at_level("WARNING", "hf_distinct"):
        assert match_image_ids(captions, IMAGE_IDS, "ours.json") == {"1": "a dog"}
    assert "4 captions of images that are not in the test set are skipped: 5, 7.png, 420, ..." in caplog.text


def test_captions_that_cannot_be_matched_are_an_error():
    with pytest.raises(ValueError, match=r"ours.json: none of its 2 images is among the 5 .* ids are 5, 6; those of"):
        match_image_ids({"5": "a", "6": "b"}, IMAGE_IDS, "ours.json")
    with pytest.raises(ValueError, match=r"ours.json: 42 and 0042.jpg are both image 42"):
        match_image_ids({"42": "a", "0042.jpg": "b"}, IMAGE_IDS, "ours.json")


def test_results_are_whole_or_not_there(tmp_path, monkeypatch):
    """A disk that runs full in the middle of them."""
    path = tmp_path / "a.json"
    write_coco_results(path, ["1"], ["a dog"])

    def half(self, text, **how):
        with open(self, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", half)
    with pytest.raises(OSError, match="a.json' could not be written: No space left"):
        write_coco_results(path, ["1", "2"], ["a cat", "a bird"])
    assert read_coco_results(path) == {"1": "a dog"} and [path] == list(tmp_path.iterdir())
