"""A folder of images with a `metadata.jsonl`: the simplest format for your own captions."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import DatasetDict

from hf_distinct.data.arrow_files import CaptionFiles
from hf_distinct.data.caption_table import CaptionTable, read_once
from hf_distinct.data.records import Lines, add_records, read_table
from hf_distinct.data.table import ImageRoot, split_named
from hf_distinct.files.fence import GIVE_IT, Fence

METADATA_FILE = "metadata.jsonl"
METADATA_TABLE = "metadata.csv"
ADVICE = "copy it into this folder, or pass the {name} itself as --dataset and set --image_root"


def load_image_folder(
    folder: str | os.PathLike[str], strict: bool = False, caption_column: str | None = None
) -> DatasetDict:
    r"""Load a folder of images with a `metadata.jsonl` (one JSON object per line) or a `metadata.csv`.

    As in `datasets`, the folder may contain `train/`, `validation/` (or `val/`) and `test/`, each with its own images
    and metadata file.

    Example:
        `{"file_name": "dogs/rex.jpg", "captions": ["A dog runs on a beach.", "A brown dog by the sea."]}`

    Args:
        folder: the folder with the metadata file. Each line has `file_name`, relative to the folder; `captions`, a
            list or a single text; optionally `image_id` (by default `file_name`) and `split` (train, validation or
            val, test; by default train, or the split that the folder is named after). Lines with the same file are
            merged. Other keys become columns if they contain texts, numbers or booleans; blank lines are allowed.
        strict: raise an error for a missing image, an empty or overlong caption, or an image without captions.
        caption_column: key of the captions, or `KEY.FIELD` if they are objects. By default `captions`, or the only
            key with another usual name (`text`, `caption`, ...).

    Returns:
        The splits in the file; columns `image`, `captions`, `image_id`, and the others.

    Raises:
        FileNotFoundError: the folder has no metadata file.
        ValueError: a broken line (named by its number), an image outside of the folder, a duplicate id, or no usable
            image; (strict) anything skipped.
    """
    files = find_metadata(folder)
    if not files:
        raise FileNotFoundError(f"The image folder {str(folder)!r} has no {METADATA_FILE} and no {METADATA_TABLE}.")
    source = files[0] if len(files) == 1 else Path(folder)
    kept = CaptionFiles(files, "folder", strict, caption_column)
    table = CaptionTable(source, strict, kept)
    return read_once(kept, source, lambda: _filled(table, Path(folder), files, caption_column))


def _filled(table: CaptionTable, folder: Path, files: list[Path], caption_column: str | None) -> CaptionTable:
    for path in files:
        read = Lines(path) if path.suffix == ".jsonl" else read_table(path, caption_column=caption_column)
        own = path.parent != folder
        split, prefix = (split_named(path.parent.name), f"{path.parent.name}/") if own else (None, "")
        root = ImageRoot(path.parent, Fence([path.parent], ADVICE.format(name=path.name)))
        add_records(table, read, root, split or "train", None, caption_column, prefix)
    return table


def find_metadata(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the metadata file of a folder, or those of its subfolders that are named like splits."""
    subfolders = [each for each in sorted(Path(folder).glob("*/")) if split_named(each.name)]
    for places in ([Path(folder)], subfolders):
        names = (METADATA_FILE, METADATA_TABLE)
        if files := [place / name for place in places for name in names if (place / name).is_file()]:
            for file in files:
                Fence([folder], GIVE_IT).check(file, str(folder))
            return files
    return []
