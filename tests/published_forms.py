"""Captioned pictures on disk in exactly the forms in which data sets are published: same keys, same folder names.

Each writer takes a folder, the encoded pictures (JPEG) and the captions of each, and returns what a person would give
as `--dataset` and `--image_root`. Of n pictures the last two are for validation and test where the form has splits.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

Written = tuple[str, str | None]


def jpegs(count: int) -> list[bytes]:
    """Small pictures, each unlike the others."""
    encoded = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        PILImage.fromarray(pixels).resize((40, 32)).save(buffer, format="JPEG")
        encoded.append(buffer.getvalue())
    return encoded


def splits_of(count: int) -> list[str]:
    return ["train"] * (count - 2) + ["val", "test"]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _sentences(captions: list[str], number: int) -> tuple[list[int], list[dict[str, Any]]]:
    sentids = [10 * number + place for place in range(len(captions))]
    sentences = [
        {"tokens": raw.lower().rstrip(".").split(), "raw": raw, "imgid": number, "sentid": sentid}
        for raw, sentid in zip(captions, sentids, strict=True)
    ]
    return sentids, sentences


def karpathy_coco(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """dataset_coco.json beside train2014/ and val2014/; every fifth picture is of restval."""
    items = []
    for number, (picture, texts, split) in enumerate(zip(pictures, captions, splits_of(len(pictures)), strict=True)):
        split = "restval" if split == "train" and number % 5 == 4 else split
        place = "train2014" if split == "train" else "val2014"
        name = f"COCO_{place}_{number:012d}.jpg"
        _write(folder / "coco" / place / name, picture)
        sentids, sentences = _sentences(texts, number)
        items.append(
            {"filepath": place, "sentids": sentids, "filename": name, "imgid": number, "split": split}
            | {"sentences": sentences, "cocoid": 500000 + number}
        )
    (folder / "dataset_coco.json").write_text(json.dumps({"images": items, "dataset": "coco"}))
    return str(folder / "dataset_coco.json"), str(folder / "coco")


def _flickr(folder: Path, pictures: list[bytes], captions: list[list[str]], name: str, place: str) -> Written:
    items = []
    for number, (picture, texts, split) in enumerate(zip(pictures, captions, splits_of(len(pictures)), strict=True)):
        file = f"{1000092795 + number}.jpg" if name == "flickr30k" else f"{2513260012 + number}_03d33305cf.jpg"
        _write(folder / place / file, picture)
        sentids, sentences = _sentences(texts, number)
        items.append({"sentids": sentids, "imgid": number, "sentences": sentences, "split": split, "filename": file})
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": items, "dataset": name}))
    return str(folder / f"dataset_{name}.json"), None


def flickr8k(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """dataset_flickr8k.json; the archive of the pictures spells its folder so."""
    return _flickr(folder, pictures, captions, "flickr8k", "Flicker8k_Dataset")


def flickr30k(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """dataset_flickr30k.json beside flickr30k-images/."""
    return _flickr(folder, pictures, captions, "flickr30k", "flickr30k-images")


def _coco_captions(folder: Path, pictures: list[bytes], captions: list[list[str]], year: int) -> Written:
    """annotations/captions_{train,val}YEAR.json beside trainYEAR/ and valYEAR/; the last two pictures are of val."""
    cut = len(pictures) - 2
    for name, rows in (("train", range(cut)), ("val", range(cut, len(pictures)))):
        place = f"{name}{year}"
        images, annotations = [], []
        for number in rows:
            file = f"{f'COCO_{place}_' if year == 2014 else ''}{number:012d}.jpg"
            _write(folder / place / file, pictures[number])
            images.append(
                {
                    "license": 4,
                    "file_name": file,
                    "coco_url": f"http://images.cocodataset.org/{place}/{file}",
                    "height": 32,
                    "width": 40,
                    "date_captured": "2013-11-14 17:02:52",
                    "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
                    "id": number,
                }  # fmt: skip
            )
        # As in the real files, the captions of an image do not stand together.
        for turn in range(max(map(len, captions))):
            for number in rows:
                if turn < len(captions[number]):
                    annotation_id = 1000 * (turn + 1) + number
                    annotations.append({"image_id": number, "id": annotation_id, "caption": captions[number][turn]})
        info = {
            "description": f"COCO {year} Dataset", "url": "http://cocodataset.org", "version": "1.0", "year": year,
            "contributor": "COCO Consortium", "date_created": "2017/09/01",
        }  # fmt: skip
        licenses = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]
        document = {"info": info, "images": images, "licenses": licenses, "annotations": annotations}
        _write(folder / "annotations" / f"captions_{place}.json", json.dumps(document).encode())
    return str(folder), None


def coco2014(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    return _coco_captions(folder, pictures, captions, 2014)


def coco2017(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    return _coco_captions(folder, pictures, captions, 2017)


def image_folder(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """metadata.jsonl beside the pictures."""
    lines = []
    for number, (picture, texts, split) in enumerate(zip(pictures, captions, splits_of(len(pictures)), strict=True)):
        _write(folder / "images" / f"{number:05d}.jpg", picture)
        lines.append(json.dumps({"file_name": f"images/{number:05d}.jpg", "captions": texts, "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder), None


def _table(pictures: list[bytes], captions: list[list[str]], rows: range) -> Dataset:
    features = Features({"image": Image(), "captions": [Value("string")], "cocoid": Value("int64")})
    return Dataset.from_dict(
        {
            "image": [{"bytes": pictures[row], "path": f"{row:012d}.jpg"} for row in rows],
            "captions": [captions[row] for row in rows],
            "cocoid": list(rows),
        },
        features=features,
    )


def saved(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """What `DatasetDict.save_to_disk` writes."""
    from datasets import DatasetDict

    cut = len(pictures)
    parts = {"train": range(cut - 2), "validation": range(cut - 2, cut - 1), "test": range(cut - 1, cut)}
    DatasetDict({k: _table(pictures, captions, rows) for k, rows in parts.items()}).save_to_disk(str(folder / "saved"))
    return str(folder / "saved"), None


def parquet(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """What the Hub holds of most data sets: data/train-00000-of-00002.parquet."""
    cut = len(pictures)
    half = (cut - 2) // 2
    parts = {
        "train-00000-of-00002": range(half), "train-00001-of-00002": range(half, cut - 2),
        "validation-00000-of-00001": range(cut - 2, cut - 1), "test-00000-of-00001": range(cut - 1, cut),
    }  # fmt: skip
    (folder / "hub" / "data").mkdir(parents=True)
    for name, rows in parts.items():
        _table(pictures, captions, rows).to_parquet(str(folder / "hub" / "data" / f"{name}.parquet"))
    return str(folder / "hub"), None


def webdataset(folder: Path, pictures: list[bytes], captions: list[list[str]]) -> Written:
    """What img2dataset writes: shards 00000.tar, ... of 400 samples, each .jpg, .json, .txt; and its own notes."""
    size, count = 400, len(pictures)
    (folder / "shards").mkdir()
    shards = [range(i, min(i + size, count - 2)) for i in range(0, count - 2, size)]
    named = [(f"{i:05d}", rows) for i, rows in enumerate(shards)]
    named += [("val-00000", range(count - 2, count - 1)), ("test-00000", range(count - 1, count))]
    for name, rows in named:
        with tarfile.open(folder / "shards" / f"{name}.tar", "w") as shard:
            for number in rows:
                key = f"{number:09d}"
                record = {
                    "caption": captions[number][0], "url": f"http://example.org/{key}.jpg", "key": key,
                    "status": "success", "error_message": None, "width": 40, "height": 32, "original_width": 40,
                    "original_height": 32, "exif": "{}", "sha256": "0" * 64,
                }  # fmt: skip
                files = {"jpg": pictures[number], "json": json.dumps(record).encode()}
                for ending, content in (files | {"txt": "\n".join(captions[number]).encode()}).items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
        (folder / "shards" / f"{name}_stats.json").write_text(json.dumps({"count": len(rows), "successes": len(rows)}))
    return str(folder / "shards"), None


FORMS = {
    form.__name__: form
    for form in (
        karpathy_coco,
        flickr8k,
        flickr30k,
        coco2014,
        coco2017,
        image_folder,
        saved,
        parquet,
        webdataset,
    )  # fmt: skip
}
