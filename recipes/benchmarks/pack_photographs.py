"""Pack captioned photographs small, to take them to another machine: one tar file for each split.

    python recipes/benchmarks/pack_photographs.py --dataset dataset_flickr8k.json --image_root Flicker8k_Dataset \
        --output_dir packed --pixels 128

`--dataset packed` then reads them in any recipe: they are WebDataset shards. Each photograph is scaled to a square,
which is what a captioner and a CLIP of that size see of it, and written as JPEG.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Image

from hf_distinct.data.images import ImageError, decode_image
from hf_distinct.data.skips import Skips
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.runs.dataset_settings import DatasetSettings
from hf_distinct.text.problems import refuse


@dataclass
class Settings(DatasetSettings):
    """What to pack, and how small."""

    output_dir: str = field(default="outputs/packed", metadata={"help": "Folder for the tar files."})
    pixels: int = field(default=128, metadata={"help": "Width and height of the packed photographs."})
    quality: int = field(default=75, metadata={"help": "Quality of the JPEG files, from 1 to 95."})
    rows: int | None = field(default=None, metadata={"help": "Most photographs of a split. Default: all."})


def problems(settings: Settings) -> Iterator[str]:
    """What cannot be done."""
    if settings.drawn:
        yield "emoji_scenes are drawn on every machine: name photographs with --dataset."
    if settings.pixels < 1 or not 1 <= settings.quality <= 95 or (settings.rows is not None and settings.rows < 1):
        yield "--pixels and --rows must be at least 1, and --quality must be from 1 to 95."


def main() -> None:
    """Pack each split."""
    (settings,) = parse_settings(Settings, description=__doc__)
    refuse(problems(settings))
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    skips = Skips("pack_photographs", settings.strict)
    for name, split in settings.load().items():
        path, rows = folder / f"{name}.tar", min(len(split), settings.rows or len(split))
        split = split.cast_column("image", Image(decode=False))  # a broken picture is left out by its name
        with tarfile.open(path, "w") as shard:
            for place in range(rows):
                add(shard, f"{place:06d}", split[place], settings, skips)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    skips.warn()


def add(shard: tarfile.TarFile, key: str, row: dict[str, Any], settings: Settings, skips: Skips) -> None:
    """One photograph with its captions."""
    try:
        picture = decode_image(row["image"]).resize((settings.pixels, settings.pixels))
    except ImageError as error:
        return skips.add("photograph that cannot be read", f"{row['image_id']}: {error}")
    encoded = io.BytesIO()
    picture.save(encoded, format="JPEG", quality=settings.quality)
    captions = json.dumps({"captions": row["captions"]}).encode()
    for ending, content in (("jpg", encoded.getvalue()), ("json", captions)):
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))
    return None


if __name__ == "__main__":
    with clear_errors():
        main()
