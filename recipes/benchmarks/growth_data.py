"""The data of growth.py: hard links of few small JPEGs, with five captions each, in every form that is read."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BLOCK = 1000
"""Images of a folder, which are links to one file, since a file takes 65,000 links at most."""
SHARD = 10_000
"""Images of a tar or parquet file."""
REFERENCES = 5
FORMS = (
    "a {} {} is {} on a {} in the {}.", "two {} {} {} next to the {} and a {}", "the {} {} with a {} near some {} {}",
    "A {} of a {} {} in front of a {} {}.", "there is a {} that {} a {} on the {} {}", "some {} {} are {} by a {} {}",
    "a {} and a {} {} on top of a {} {}", "An {} {} {} at the {} of a {}.", "many {} {} in a {} with {} {}",
    "a man {} a {} while the {} {} a {}", "a woman in a {} {} holding a {} {} {}", "the {} of the {} has {} {} {}",
)  # fmt: skip
"""Captions of 8 to 12 words, five of which are chosen: as long as COCO's."""
WORDS, TOPIC, CHOSEN = 5000, 8, 5
"""Words that are chosen from, words of an image, and those of a caption."""


class Captioned(NamedTuple):
    """An image with its reference captions, and a caption to be measured."""

    number: int
    references: list[str]
    said: str


def captioned(images: int) -> Iterator[Captioned]:
    """Draw captions: frequencies of words fall as Zipf's, and the captions of an image have words in common."""
    words = [word[:-4] for word in open_clip.get_tokenizer("ViT-B-32").decoder.values() if word.endswith("</w>")]
    words = [word for word in words if word.isascii() and word.isalpha() and len(word) > 2][:WORDS]
    share = 1 / (np.arange(len(words)) + 10.0)
    for start in range(0, images, BLOCK):
        generator = np.random.default_rng([0, start])  # so that small data are the beginning of large data
        topics = generator.choice(len(words), (BLOCK, TOPIC), p=share / share.sum())
        orders = np.tile(np.arange(TOPIC), (BLOCK, REFERENCES + 1, 1))
        chosen = generator.permuted(orders, axis=2)[:, :, :CHOSEN].tolist()
        forms = generator.integers(len(FORMS), size=(BLOCK, REFERENCES + 1)).tolist()
        for place in range(min(BLOCK, images - start)):
            topic = [words[word] for word in topics[place].tolist()]
            own = zip(forms[place], chosen[place], strict=True)
            texts = [FORMS[form].format(*(topic[word] for word in some)) for form, some in own]
            yield Captioned(start + place, texts[:REFERENCES], texts[REFERENCES])


def jpeg(number: int) -> bytes:
    """Return a picture of 16 x 16 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (number // BLOCK % 256, number // BLOCK // 256 % 256, 128)).save(file, "JPEG")
    return file.getvalue()


def file_name(number: int) -> str:
    """Return the file of an image, relative to the folder of images."""
    return f"{number // BLOCK:05d}/{number:09d}.jpg"


def make_data(folder: Path, images: int) -> None:
    """Write the data, unless they are there.

    Args:
        folder: gets ``images/`` with its metadata.jsonl, ``karpathy.json``, ``shards/``, ``parquet/``, and the
            captions to be measured, ``said.json`` in COCO's form of results.
        images: the number of images.
    """
    if (folder / "said.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("images", "shards", "parquet"):
        (folder / name).mkdir(parents=True)
    said: list[dict[str, Any]] = []
    with (
        open(folder / "karpathy.json", "w") as karpathy,
        open(folder / "images" / "metadata.jsonl", "w") as metadata,
    ):
        karpathy.write('{"dataset": "growth", "images": [\n')
        shard: list[Captioned] = []
        for image in captioned(images):
            if image.number % BLOCK == 0:
                _link(folder / "images", range(image.number, min(image.number + BLOCK, images)))
            karpathy.write((",\n" if image.number else "") + json.dumps(_as_karpathy(image)))
            line = {"file_name": file_name(image.number), "captions": image.references}
            metadata.write(json.dumps(line) + "\n")
            said.append({"image_id": image.number, "caption": image.said})
            shard.append(image)
            if len(shard) == SHARD or image.number == images - 1:
                _write_shard(folder, shard)
                shard = []
        karpathy.write("\n]}\n")
    (folder / "said.json").write_text(json.dumps(said))


def _link(folder: Path, numbers: range) -> None:
    first = folder / file_name(numbers.start)
    first.parent.mkdir()
    first.write_bytes(jpeg(numbers.start))
    for number in numbers[1:]:
        os.link(first, folder / file_name(number))


def _as_karpathy(image: Captioned) -> dict[str, Any]:
    """Return the record of an image with all that dataset_coco.json has."""
    first = REFERENCES * image.number
    sentences = [
        {"tokens": text.lower().strip(".").split(), "raw": text, "imgid": image.number, "sentid": first + place}
        for place, text in enumerate(image.references)
    ]
    folder, name = file_name(image.number).split("/")
    return {
        "filepath": folder, "sentids": list(range(first, first + REFERENCES)), "filename": name,
        "imgid": image.number, "split": "train", "sentences": sentences, "cocoid": image.number,
    }  # fmt: skip


def _write_shard(folder: Path, shard: list[Captioned]) -> None:
    """Write a tar and a parquet file; a number after the end of each JPEG makes no two of them equal."""
    common = jpeg(shard[0].number)
    pictures = [common + image.number.to_bytes(8, "big") for image in shard]
    name = f"{shard[0].number // SHARD:05d}"
    with tarfile.open(folder / "shards" / f"{name}.tar", "w") as tar:
        for image, picture in zip(shard, pictures, strict=True):
            about = json.dumps({"captions": image.references}).encode()
            for ending, content in (("jpg", picture), ("json", about)):
                member = tarfile.TarInfo(f"{image.number:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    columns = {
        "image": pa.array([{"bytes": picture, "path": None} for picture in pictures],
                          pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "captions": pa.array([image.references for image in shard], pa.list_(pa.string())),
        "image_id": pa.array([str(image.number) for image in shard], pa.string()),
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "parquet" / f"{name}.parquet", row_group_size=BLOCK)
