"""What the sources of captions share: JSON, names of columns and splits, ids, and the files of images."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from datasets import Features, Image, Value

from hf_distinct.data.texts import decode_text, is_storable, read_bytes, texts_of
from hf_distinct.files.fence import Fence

SPLITS = ("train", "validation", "test")
# "restval": COCO validation images outside of Karpathy's 5,000 + 5,000, which are usually added to the training split.
SPLIT_NAMES = {
    "train": "train", "restval": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip
# Columns with image ids in published datasets.
ID_COLUMNS = ("image_id", "cocoid", "img_id", "imgid")
# Names of columns or keys with the image or its file in published datasets.
IMAGE_NAMES = (
    ("file_name",),
    ("image",),
    ("filename", "image_name", "image_path", "image_file", "filepath", "file", "path", "img_path", "img", "images"),
    ("picture", "photo", "jpg", "png"),
)
FILES_TRIED = 1000
"""Files by which `find_image_root` chooses a folder, unless none of them is found."""
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Args:
        path: the file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Returns:
        The decoded document.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON; the message names the file and the position.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no caption file {str(path)!r}.")
    return parse_json(read_bytes(path), str(path))


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file with an object; raises OSError if it cannot be read, ValueError if it contains no object."""
    document = parse_json(read_bytes(path), os.fspath(path))
    if not isinstance(document, dict):
        raise ValueError(f"{os.fspath(path)}: expected an object, found {type(document).__name__}.")
    return document


def parse_json(content: bytes, where: str) -> Any:
    """Decode JSON, or raise a ValueError that begins with `where`; an object must not repeat a key."""
    text = decode_text(content, where)
    try:
        return DECODER.decode(text)
    except RecursionError as error:
        raise ValueError(f"{where}: this is not JSON that can be read: it is nested too deeply.") from error
    except ValueError as error:  # not JSON, or a number with thousands of digits
        raise ValueError(f"{where}: this is not JSON that can be read: {error}") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON as a dict; raises ValueError if a key is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is repeated in an object")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def refuse_settings(path: object, form: str, **settings: object) -> None:
    """Raise ValueError for a setting that does not apply to a format and would be ignored silently."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(f"{str(path)!r} is {form}: leave out {name}={str(value)!r}.")


def take(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return a field of a decoded JSON object and check its type.

    Args:
        record: the object.
        key: the field.
        kind: its type or types; `int` does not include booleans.
        where: file and position, with which the message begins.

    Returns:
        The field's value.

    Raises:
        ValueError: `record` is not an object, lacks the field, or the field has another type.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    expected = " or ".join({str: "text", int: "an integer", list: "a list", dict: "an object"}[each] for each in kinds)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with {key!r}, found {type(record).__name__}.")
    if key not in record:
        raise ValueError(f"{where}: {key!r} ({expected}) is missing; found the keys {sorted(record)}.")
    value = record[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        shown = reprlib.repr(value) if isinstance(value, (list, dict)) else str(value)[:60]  # lists may be very deep
        raise ValueError(f"{where}: {key!r} should be {expected}, found {type(value).__name__}: {shown!r}.")
    return value


def take_captions(record: Any, key: str, where: str, field: str | None = None) -> list[Any]:
    """Return captions in any form for `texts_of`; raises ValueError as `take`, and for a struct without text."""
    if not isinstance(record, dict) or key not in record:
        return take(record, key, (list, str), where)
    try:
        return texts_of(record[key], field)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from error


def take_id(record: Any, key: str, where: str) -> str:
    """Return an id (text or integer; 1.0 is 1) as text; raises ValueError as `take`, and for empty or broken text."""
    if isinstance(record, dict) and key in record:
        record = {**record, key: whole(record[key])}
    identifier = str(take(record, key, (str, int), where))
    if not identifier.strip() or not is_storable(identifier):
        raise ValueError(f"{where}: {key!r} should be an id, found {identifier!r}.")
    return identifier


def whole(value: Any) -> Any:
    """Convert an integral float to an integer: tables turn ids into floats if one is missing."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def find_file(path: str) -> str | None:
    """Find the file for a path that may be a Windows path, URL-encoded, without extension or with it in other case."""
    if os.path.isfile(path):
        return path
    plain = path.replace("\\", "/")
    for each in dict.fromkeys((plain, unquote(plain))):
        stem, ending = os.path.splitext(each)
        others = [each, stem + ending.lower(), stem + ending.upper()]
        if ending.lower().lstrip(".") not in IMAGE_ENDINGS:
            others += [f"{each}.{image_ending}" for image_ending in IMAGE_ENDINGS]
        if found := next(filter(os.path.isfile, others), None):
            return found
    return None


class ImageRoot(NamedTuple):
    """The folder that image files are relative to, and the folders that they must be in."""

    folder: Path
    fence: Fence


def find_image_root(
    files: Iterable[str],
    source: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    roots: Sequence[Path],
    subfolders: Sequence[str] = (),
) -> ImageRoot:
    """Find the first folder that contains any of the files: a root itself, or a subfolder that archives unpack to.

    Args:
        files: image paths, as in the source.
        source: the source, for the message.
        image_root: the user's root: files outside of it are not read. Paths relative to one of `roots` are found as
            well if they lead into it.
        roots: other possible folders; the first one is the default.
        subfolders: names of subfolders.

    Raises:
        ValueError: the folder `image_root` does not exist.
    """
    fence = None
    files = iter(files)
    chunk = list(islice(files, FILES_TRIED))
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise ValueError(f"{source}: the image folder {str(image_root)!r} does not exist.")
        fence = Fence([image_root])
        given = [Path(image_root)]
        innermost = given[0].resolve()
        if all(Path(file).parts[:1] == (innermost.name,) for file in chunk):  # "images/1.jpg" in the folder images
            given.append(innermost.parent)
        roots = [*given, *roots]
    folders = [(root, folder) for root in roots for name in ("", *subfolders) if (folder := root / name).is_dir()]
    while chunk:
        relative = [file for file in chunk if not os.path.isabs(file)] or chunk  # absolute paths need no root
        for find, some in ((_itself, relative), (find_file, relative[:100])):
            for root, folder in folders:
                own = fence or Fence([root, roots[0]])
                if any(found in own for file in some if (found := find(os.path.join(folder, file)))):
                    return ImageRoot(folder, own)
        chunk = list(islice(files, FILES_TRIED))
    return ImageRoot(roots[0], fence or Fence([roots[0]]))


def _itself(path: str) -> str | None:
    return path if os.path.isfile(path) else None


def caption_features() -> Features:
    """Return the columns of every source."""
    return Features({"image": Image(), "captions": [Value("string")], "image_id": Value("string")})


def split_named(name: str) -> str | None:
    """Return the split (train, validation or test) for a source's name of it; None if unknown."""
    return SPLIT_NAMES.get(name.lower())
