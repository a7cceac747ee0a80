"""Write captioned pictures to disk, as the worked example of a person's own data.

    python recipes/make_example.py FOLDER [COUNT]

FOLDER/metadata.jsonl has a line for each picture: {"file_name": ..., "captions": [...]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hf_distinct.data.emoji.dataset import emoji_scenes


def main() -> None:
    """Write the pictures and their captions."""
    if not 2 <= len(sys.argv) <= 3:
        raise SystemExit(__doc__)
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 200
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.jsonl", "w", encoding="utf-8") as lines:
        for index, row in enumerate(emoji_scenes("train", count, seed=1)):
            name = f"images/{index:05d}.png"
            row["image"].save(folder / name)
            lines.write(json.dumps({"file_name": name, "captions": row["captions"]}) + "\n")


if __name__ == "__main__":
    main()
