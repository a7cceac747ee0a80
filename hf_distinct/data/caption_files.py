"""Files that list images and captions row by row: BLIP's and LAVIS' lists, JSONL, tables, Flickr's token files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_distinct.data.arrow_files import CaptionFiles
from hf_distinct.data.caption_table import CaptionTable, read_once
from hf_distinct.data.records import Lines, Records, add_records, image_files, read_table
from hf_distinct.data.table import find_image_root, read_json, split_named
from hf_distinct.data.texts import decode_text, read_bytes
from hf_distinct.files.fence import GIVE_IT, Fence

# Folder names in published archives (with Flickr8k's own spelling).
IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "flickr30k_images", "Images", "images")
TABLE_ENDINGS = (".jsonl", ".csv", ".tsv", ".txt", ".token")
_USUAL_FILE = re.compile(
    r"(?:(?:captions?|annotations?|results(?:_\d+)?)\.(?:txt|csv|tsv|jsonl?|token)|(?:.*\.)?token(?:\.txt)?"
    r"|dataset_\w+\.json|(?:.*[_.-])?(?:train|val|valid|validation|dev|test)\.(?:jsonl?|csv|tsv))",
    re.IGNORECASE,
)
_SPLIT_OF_FILE = re.compile(r"(.*?)[_.-]?(train|val|valid|validation|dev|test)", re.IGNORECASE)
_SPLIT_LIST = re.compile(r".*?(train|dev|val|test)_?images\.txt", re.IGNORECASE)
_IMAGE_NAME = re.compile(r".+\.\w{3,4}")


def load_caption_file(
    paths: str | os.PathLike[str] | dict[str, Path],
    image_root: str | os.PathLike[str] | None = None,
    strict: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> DatasetDict:
    """Load a file that lists images and captions row by row; rows with the same image are merged.

    - `.json`: a list of objects as in BLIP and LAVIS, `[{"image": "a.jpg", "caption": "A dog."}, ...]`, where
      `caption` may be a list; the same under the key `data` (TextCaps); or `{"a.jpg": ["A dog.", ...], ...}`;
    - `.jsonl`: one such object per line;
    - `.csv`, `.tsv`, `.txt`: a table with a header (`image,caption` for Flickr8k on Kaggle, `image_name| comment` for
      Flickr30k), or without one, where each row is an image file and a caption;
    - `.token`, `.token.txt`: `a.jpg#0`, a tab and a caption, as Flickr8k and Flickr30k were published.

    If `Flickr_8k.trainImages.txt`, `.devImages.txt` and `.testImages.txt` are in the folder of a table, they define
    the splits.

    Args:
        paths: the file, or files by split.
        image_root: folder of the images; by default the file's own folder, its parent, or a folder in one of these
            that has the name of a published archive. Only files in this folder are read.
        strict: raise an error for a missing image, an empty or overlong caption, or an image without captions.
        image_column: key or column of the image file; by default the only one with a usual name.
        caption_column: key or column of the captions, or `KEY.FIELD`; by default the only one with a usual name.

    Returns:
        Splits among train, validation and test ("train" if none is named); columns `image`, `captions`, `image_id`
        (by default the file's path), and other keys that contain texts, numbers or booleans.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: an unknown format, an encoding other than UTF-8, or no usable image; (strict) anything skipped.
    """
    by_split = paths if isinstance(paths, dict) else {"train": Path(paths)}
    sources = [each for path in by_split.values() for each in (path, *_split_list_files(path))]
    arguments = (image_root, strict, image_column, caption_column)
    files = CaptionFiles(sources, "list", *by_split, *arguments)
    return read_once(files, _source(by_split), lambda: read_caption_files(by_split, *arguments, files))


def read_caption_files(
    paths: Path | dict[str, Path],
    image_root: str | os.PathLike[str] | None,
    strict: bool,
    image_column: str | None,
    caption_column: str | None,
    files: CaptionFiles,
) -> CaptionTable:
    """Do the same as `load_caption_file`, and return the rows as read."""
    by_split = paths if isinstance(paths, dict) else {"train": paths}
    table = CaptionTable(_source(by_split), strict, files)
    for split, path in by_split.items():
        records = _read(path, image_column, caption_column)
        names = image_files(records, image_column)
        root = find_image_root(names, path, image_root, [path.parent, path.parent.parent], IMAGE_FOLDERS)
        add_records(table, records, root, split, image_column, caption_column, listed=_split_lists(path))
    return table


def _source(paths: dict[str, Path]) -> Path:
    first = next(iter(paths.values()))
    return first if len(paths) == 1 else first.parent


def find_caption_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Find a caption file with a usual name in a folder, or the files of its splits (`coco_karpathy_train.json`, ...).

    Raises:
        ValueError: the folder has several such files or sets of files.
    """
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and _USUAL_FILE.fullmatch(path.name) and "lemma" not in path.name:
            found = _SPLIT_OF_FILE.fullmatch(path.stem)
            group, split = (found[1] + path.suffix, split_named(found[2])) if found else (path.name, "train")
            groups.setdefault(group, {})[split or "train"] = path
            Fence([folder], GIVE_IT).check(path, str(folder))
    if len(groups) > 1:
        names = " and ".join(next(iter(files.values())).name for files in groups.values())
        raise ValueError(f"{str(folder)!r} contains {names}: pass one of these files.")
    return next(iter(groups.values()), {})


def records_of(document: Any, source: str) -> Records | None:
    """Return the records of a JSON document in a format of `load_caption_file`; None for other formats."""
    if isinstance(document, dict):
        for key in ("data", "annotations", "images"):
            if isinstance(document.get(key), list):
                return _numbered(document[key], f"{source}: {key}")
        if document and all(_IMAGE_NAME.fullmatch(name) and _is_text(value) for name, value in document.items()):
            pairs = document.items()
            return [(f"{source}: {name!r}", {"image": name, "captions": texts}) for name, texts in pairs]
        return None
    return _numbered(document, source) if isinstance(document, list) else None


def _numbered(rows: Iterable[Any], source: str) -> Records:
    return [(f"{source}[{row}]", record) for row, record in enumerate(rows)]


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, list) and not any(map(_is_object, value)))


def _is_object(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _read(path: Path, image_column: str | None, caption_column: str | None) -> Records:
    if path.suffix.lower() == ".json":
        document = read_json(path)
        records = records_of(document, str(path))
        if records is None:
            raise ValueError(
                f'{path}: expected a list of objects with "image" and "caption" (BLIP), or an object with "images" '
                f'and "annotations" (COCO), found {_described(document)}.'
            )
    elif not path.is_file():
        raise FileNotFoundError(f"There is no caption file {str(path)!r}.")
    elif path.suffix.lower() == ".jsonl":
        records = Lines(path)
    else:
        records = read_table(path, image_column, caption_column)
    if next(iter(records), None) is None:
        raise ValueError(f"{path}: it contains no images.")
    return records


def _described(document: Any) -> str:
    if not isinstance(document, dict):
        return type(document).__name__
    return f"an object with the keys {', '.join(list(document)[:10])}"


def _split_lists(path: Path) -> dict[str, str]:
    """Return the split of each image name, from split lists in the folder of a table."""
    found: dict[str, str] = {}
    for file, split in _split_list_files(path).items():
        Fence([path.parent], "copy it there").check(file, str(path.parent))
        names = decode_text(read_bytes(file), str(file)).split("\n")
        found |= {name.strip(): split for name in names if name.strip()}
    return found


def _split_list_files(path: Path) -> dict[Path, str]:
    """Return the split lists in the folder of a table, and their splits."""
    if path.suffix.lower() in (".json", ".jsonl") or not path.parent.is_dir():
        return {}
    listed = ((file, _SPLIT_LIST.fullmatch(file.name)) for file in sorted(path.parent.iterdir()))
    return {file: split_named(found[1]) or "train" for file, found in listed if found}
