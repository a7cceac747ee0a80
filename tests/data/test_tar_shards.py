import gzip
import io
import json
import tarfile
from pathlib import Path

import published_forms
import pytest
from datasets import Image

from hf_distinct.data import load_captions
from hf_distinct.data.tar_shards import find_shards

PICTURES = published_forms.jpegs(4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write(path: Path, files: dict[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def test_samples_are_told_apart_by_the_name_before_the_first_dot(tmp_path):
    path = write(
        tmp_path / "a.tar",
        {
            "x/0001.thumb.JPG": PICTURES[0], "x/0001.txt": "one\n\ntwo \n", "x/._0001.txt": "of a Mac",
            "x/0002.png": PICTURES[1], "x/0002.json": json.dumps({"caption": "three"}),
            "y/0002.webp": PICTURES[2], "y/0002.json": json.dumps({"captions": ["four", "five"], "caption": "six"}),
        },
    )  # fmt: skip
    train = load_captions(path)["train"]
    assert train["image_id"][:] == ["a.tar/x/0001", "a.tar/x/0002", "a.tar/y/0002"]
    assert train["captions"][:] == [["one", "two"], ["three"], ["four", "five"]]
    encoded = train.cast_column("image", Image(decode=False))
    assert [row["image"]["bytes"] for row in encoded] == PICTURES[:3]


def test_captions_from_where_one_says(tmp_path):
    record = json.dumps({"caption": "from json", "alt": "from alt"})
    path = write(
        tmp_path / "a.tar", {"1.jpg": PICTURES[0], "1.json": record, "1.txt": "from txt", "1.cap": "from cap"}
    )
    for column, caption in [(None, "from txt"), ("alt", "from alt"), ("cap", "from cap"), ("caption", "from json")]:
        assert load_captions(path, caption_column=column)["train"]["captions"][:] == [[caption]]
    with pytest.raises(ValueError, match="no sample is usable: 1 x image without a caption"):
        load_captions(path, caption_column="nothing")


def test_other_endings_and_keys(tmp_path, caplog):
    path = write(
        tmp_path / "A.TAR",
        {
            "1.JPG": PICTURES[0], "1.caption": "one", "2.jpg": PICTURES[1], "2.json": json.dumps({"text": "two"}),
            "3.jpg": PICTURES[2], "3.json": json.dumps({"sentences": [{"raw": "three"}, {"raw": None}]}),
            "4.jpg": PICTURES[3], "4.cls": "4", "4.json": json.dumps({"captions": {"words": "four"}}),
        },
    )  # fmt: skip
    assert load_captions(path)["train"]["captions"][:] == [["one"], ["two"], ["three"]]
    assert "1 x caption that is an object without a text ('A.TAR/4')" in caplog.text
    assert load_captions(path, caption_column="sentences.raw")["train"]["captions"][:] == [["three"]]
    path = write(tmp_path / "b.tar", {"1.jpg": PICTURES[0], "1.cls": "4", "1.json": '{"title_en": "a"}'})
    with pytest.raises(ValueError, match=r"the files \.jpg, \.cls, \.json, with the keys title_en in"):
        load_captions(path)


def test_missing_captions_are_skipped_and_counted(tmp_path, caplog):
    records = [{"captions": [None, "a", "nan", 5]}, {"caption": None}, {"caption": float("nan")}]
    files = {f"{i}.{k}": v for i, r in enumerate(records) for k, v in (("jpg", PICTURES[i]), ("json", json.dumps(r)))}
    assert load_captions(write(tmp_path / "a.tar", files))["train"]["captions"][:] == [["a"]]
    assert "3 x empty caption of image ('a.tar/0', 'a.tar/0', 'a.tar/2')" in caplog.text
    assert "1 x caption that is not text (int) of image ('a.tar/0')" in caplog.text
    assert "2 x image without a caption ('a.tar/1', 'a.tar/2')" in caplog.text


def test_byte_order_marks_and_other_encodings(tmp_path, caplog):
    texts = {"1.txt": "\ufeffa dog", "2.txt": "un café".encode("latin-1"), "3.txt": "un café".encode("utf-16")}
    files: dict = {}
    for number, (name, content) in enumerate(texts.items()):
        files |= {name.replace("txt", "jpg"): PICTURES[number], name: content}
    path = write(tmp_path / "a.tar", files)
    assert load_captions(path)["train"]["captions"][:] == [["a dog"], ["un café"]]
    assert "1 x caption file that is not UTF-8 (save it as UTF-8) ('a.tar/2.txt')" in caplog.text
    with pytest.raises(ValueError, match=r"caption file that is not UTF-8 .*a\.tar/2\.txt"):
        load_captions(path, strict=True)


def test_samples_of_one_picture_are_one_image(tmp_path, caplog):
    samples = [(0, "a", "x"), (1, "b", "y"), (0, "c", "x"), (2, "d", "z")]
    files: dict = {}
    for row, (picture, caption, style) in enumerate(samples):
        record = {"caption": caption, "style": style, "n": row}
        files |= {f"{row}.jpg": PICTURES[picture], f"{row}.json": json.dumps(record)}
    write(tmp_path / "s" / "train-0.tar", files)
    write(tmp_path / "s" / "val-0.tar", {"9.jpg": PICTURES[2], "9.txt": "e"})
    loaded = load_captions(tmp_path / "s")
    train = loaded["train"]
    assert train["captions"][:] == [["a", "c"], ["b"], ["d"]] and loaded["validation"]["captions"][:] == [["e"]]
    assert train["image_id"][:] == ["train-0.tar/0", "train-0.tar/1", "train-0.tar/3"]
    assert train.column_names == ["image", "captions", "image_id", "style"] and train["style"][:] == ["x", "y", "z"]
    encoded = train.cast_column("image", Image(decode=False))
    assert [row["image"]["bytes"] for row in encoded] == PICTURES[:3]
    assert "found 1 x image of validation that is also in train ('val-0.tar/9')" in caplog.text
    assert "ignored 'n'" in caplog.text


def test_keys_become_columns(tmp_path, caplog):
    records: list = [{"text": "a", "width": 3, "url": "u", "exif": {}}, {"text": "b", "width": "x"}, {"text": "c"}]
    files = {f"{i}.{k}": v for i, r in enumerate(records) for k, v in (("jpg", PICTURES[i]), ("json", json.dumps(r)))}
    train = load_captions(write(tmp_path / "a.tar", files))["train"]
    assert train.column_names == ["image", "captions", "image_id", "url"] and train["url"][:] == ["u", None, None]
    assert "ignored 'exif', 'width'" in caplog.text


def test_splits_by_the_name_of_shard_or_folder(tmp_path):
    for number, name in enumerate(["train-0.tar", "val-0.tar", "test/0.tar", "00001.tar"]):
        write(tmp_path / "s" / name, {"k.jpg": PICTURES[number], "k.txt": "x"})
    loaded = load_captions(tmp_path / "s")
    assert {name: rows["image_id"][:] for name, rows in loaded.items()} == {
        "train": ["00001.tar/k", "train-0.tar/k"],
        "validation": ["val-0.tar/k"],
        "test": ["0.tar/k"],
    }


def test_patterns(tmp_path):
    for number in range(9, 12):
        write(tmp_path / f"{number:03d}.tar", {"k.jpg": PICTURES[number - 9], "k.txt": "x"})
    assert find_shards(f"{tmp_path}/{{009..011}}.tar") == [str(tmp_path / f"{n}.tar") for n in ("009", "010", "011")]
    assert find_shards("http://host/{0..1}/{08..10}.tar")[-1] == "http://host/1/10.tar"
    assert len(find_shards("http://host/{0..1}/{08..10}.tar")) == 6
    assert len(load_captions(f"{tmp_path}/{{009..011}}.tar")["train"]) == 3
    with pytest.raises(FileNotFoundError, match=r"no shard .*012\.tar', one of 4"):
        load_captions(f"{tmp_path}/{{009..012}}.tar")
    with pytest.raises(FileNotFoundError, match=r"no shard .*a\.tar"):
        load_captions(tmp_path / "a.tar")


def test_a_compressed_shard(tmp_path):
    plain = write(tmp_path / "a.tar", {"k.jpg": PICTURES[0], "k.txt": "x"})
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert load_captions(tmp_path / "b.tar.gz")["train"]["captions"][:] == [["x"]]


def test_skips_are_counted_and_named_a_second_time_too(tmp_path, caplog):
    write(
        tmp_path / "s" / "0.tar",
        {
            "1.jpg": PICTURES[0],
            "1.txt": "one",
            "2.txt": "no picture",
            "3.jpg": PICTURES[1],
            "4.jpg": PICTURES[2],
            "4.json": "{",
        },
    )
    whole = write(
        tmp_path / "s" / "1.tar", {"1.jpg": PICTURES[3], "1.txt": "two", "2.jpg": PICTURES[1], "2.txt": "cut"}
    )
    whole.write_bytes(whole.read_bytes()[:3300])  # within the picture of the second sample
    for _ in range(2):  # the second time from the cache of `datasets`
        caplog.clear()
        train = load_captions(tmp_path / "s")["train"]
        assert train["captions"][:] == [["one"], ["two"]]
        (record,) = caplog.records
        for told in (
            "1 x sample without an image ('0.tar/2')", "2 x image without a caption ('0.tar/3', '0.tar/4')",
            "1 x sample whose .json is broken ('0.tar/4')",
            "1 x broken shard (ReadError: unexpected end of data) ('1.tar')",
        ):  # fmt: skip
            assert told in record.getMessage()
    with pytest.raises(ValueError, match=r"sample without an image: '0\.tar/2'"):
        load_captions(tmp_path / "s", strict=True)


# A sample takes 2,560 bytes: the text's header and block, the picture's header and two blocks. It is cut within the
# text, the picture's header, its data, and between the first two samples, where the first may still lack a file.
@pytest.mark.parametrize(
    ("kept", "samples"), [(700, 0), (1200, 0), (2000, 0), (2560, 0), (2600, 0), (3700, 1), (5120, 1)]
)
def test_a_shard_that_was_cut_keeps_its_whole_samples(kept, samples, tmp_path, caplog):
    files = {f"{i}.{k}": v for i in range(9) for k, v in (("txt", "one"), ("jpg", PICTURES[0]))}
    path = write(tmp_path / "a.tar", files)
    path.write_bytes(path.read_bytes()[:kept])
    if not samples:
        with pytest.raises(ValueError, match="no sample is usable: 1 x broken shard"):
            load_captions(path)
        return
    assert load_captions(path)["train"]["captions"][:] == [["one"]]
    assert "1 x broken shard" in caplog.text
    with pytest.raises(ValueError, match="broken shard"):
        load_captions(path, strict=True)


def test_a_changed_shard_is_read_anew(tmp_path):
    path = write(tmp_path / "a.tar", {"k.jpg": PICTURES[0], "k.txt": "x"})
    load_captions(path)
    write(path, {"k.jpg": PICTURES[0], "k.txt": "another caption"})
    assert load_captions(path)["train"]["captions"][:] == [["another caption"]]


def test_settings_without_a_use_are_refused(tmp_path):
    path = write(tmp_path / "a.tar", {"k.jpg": PICTURES[0], "k.txt": "x"})
    for settings in ({"image_root": "x"}, {"image_column": "x"}):
        with pytest.raises(ValueError, match=f"WebDataset shards: leave out {next(iter(settings))}='x'"):
            load_captions(path, **settings)
