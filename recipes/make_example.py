"""Write a small folder of captioned pictures, as an example of a dataset of your own.

    hf-distinct make-example example
    hf-distinct train --dataset example --model_name_or_path captioner --scorer scorer --judge judge

The recipe draws emoji scenes. It writes the pictures to FOLDER/images, and to FOLDER/metadata.jsonl one line for each:
{"file_name": ..., "captions": [...]}.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.runs.arguments import clear_errors, parse_settings


@dataclass
class Settings:
    """How many pictures to write, and where to."""

    folder: str = field(metadata={"help": "Folder to write the pictures and their captions to."})
    count: int = field(default=200, metadata={"help": "Number of pictures."})


def main() -> None:
    """Write the pictures and their captions."""
    (settings,) = parse_settings(Settings, description=__doc__, first=("folder", "count"))
    folder = Path(settings.folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as lines:
        for index, row in enumerate(emoji_scenes("train", settings.count, seed=1)):
            name = f"images/{index:05d}.png"
            row["image"].save(folder / name)
            lines.write(json.dumps({"file_name": name, "captions": row["captions"]}) + "\n")


if __name__ == "__main__":
    with clear_errors():
        main()
