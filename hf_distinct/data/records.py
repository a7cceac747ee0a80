"""Read records of a caption file (lines of JSONL, rows of a table, objects of a list) into a `CaptionTable`."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hf_distinct.data.caption_table import CaptionTable
from hf_distinct.data.further import parse_numbers
from hf_distinct.data.table import (
    ID_COLUMNS,
    IMAGE_ENDINGS,
    IMAGE_NAMES,
    ImageRoot,
    parse_json,
    split_named,
    take,
    take_captions,
    take_id,
    whole,
)  # fmt: skip
from hf_distinct.data.texts import MAX_TEXT_BYTES, decode_text, find_name, read_bytes, split_field

Records = Iterable[tuple[str, Any]]
"""Records with their position, for messages; they can be read several times."""

_IMAGE_FILE = re.compile(rf".+\.({'|'.join(IMAGE_ENDINGS)})(#\d+)?", re.IGNORECASE)
_NUMBER = re.compile(r"#\d+$")
_URL = re.compile(r"https?://")
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
FETCH = "Download the images first, for instance with img2dataset, and pass the folder of its shards."


class Lines:
    """The records of a JSONL file, which are read when they are needed; blank lines are allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the position and the record of each line; raises ValueError for one that is not JSON."""
        with self.path.open("rb") as file:
            marked = file.read(2) in UTF16_MARKS
            file.seek(0)
            lines = BytesIO(decode_text(read_bytes(self.path), str(self.path)).encode()) if marked else file
            # As bytes, split at "\n" only: str.splitlines would also split at characters that JSON allows in a text.
            for number, line in enumerate(iter(lambda: lines.readline(MAX_TEXT_BYTES), b""), start=1):
                where = f"{self.path}, line {number}"
                if len(line) == MAX_TEXT_BYTES:
                    raise ValueError(f"{where}: it has over {MAX_TEXT_BYTES} bytes. Is this a file of lines?")
                if not line.isspace():
                    yield where, parse_json(line, where)


def read_table(
    path: Path, image_column: str | None = None, caption_column: str | None = None
) -> list[tuple[str, Any]]:
    """Read a text table: CSV (`,` or `;`), TSV, or Flickr30k's `|`, with or without a header.

    Without a header, a row is an image file and a caption: `a.jpg,A dog.`, or `a.jpg#0`, a tab and the caption, as in
    the token files of Flickr8k and Flickr30k. Columns of numbers become numbers.

    Raises:
        ValueError: it is not UTF-8, or a row has more cells than the header; the message names the line.
    """
    text = decode_text(read_bytes(path), str(path))
    delimiter = _delimiter(text, path)
    rows = list(_rows(text, delimiter, path))
    if not rows:
        return []
    header = [cell.strip() for cell in rows[0][1]]
    if image_column not in header and find_name(header, IMAGE_NAMES) is None and _IMAGE_FILE.fullmatch(header[0]):
        header = ["image", "caption"]
    else:
        rows = rows[1:]
    captions = caption_column or find_name(header)
    records: list[dict[str, Any]] = []
    for number, cells in rows:
        if len(cells) > len(header) and header[-1] != captions:
            raise ValueError(
                f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}: put a text with "
                f"{delimiter!r} in double quotes."
            )
        if len(cells) > len(header):  # an unquoted caption with commas
            cells = [*cells[: len(header) - 1], f"{delimiter} ".join(cells[len(header) - 1 :])]
        records.append({name: cell and cell.strip() for name, cell in zip_longest(header, cells)})
    parse_numbers(records, keep={"split", *ID_COLUMNS, *filter(None, (captions, image_column or _image_key(header)))})
    return [(f"{path}, line {number}", record) for (number, _), record in zip(rows, records, strict=True)]


def _delimiter(text: str, path: Path) -> str:
    first = text.lstrip().partition("\n")[0]
    return next((each for each in "\t|,;" if each in first), "\t" if path.suffix.lower() == ".tsv" else ",")


def _rows(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each line's number and cells."""
    # Files with tabs and bars have no quoting, so a quote is part of the text.
    quoted = delimiter in ",;"
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells if quoted else [_unquoted(cell) for cell in cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}. Is a double quote not closed?") from error


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    whole_cell = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if whole_cell else cell


def add_records(
    table: CaptionTable,
    records: Records,
    root: ImageRoot,
    split: str = "train",
    image_column: str | None = None,
    caption_column: str | None = None,
    prefix: str = "",
    listed: Mapping[str, str] | None = None,
) -> None:
    """Add records to a table: `{"file_name": ..., "captions": ..., "image_id": ..., "split": ...}`, or other names.

    Args:
        table: the table.
        records: records of one file; the first one determines the names of the keys.
        root: the folder that image files are relative to, and the folders they may be in.
        split: split of records that name none.
        image_column: key of the image file; by default the only one of `IMAGE_NAMES`, otherwise the id.
        caption_column: key of the captions, or `KEY.FIELD`; by default the only one of `CAPTION_NAMES`.
        prefix: prefix of ids that are made from a file name.
        listed: the split of each image file. Other images are noted and left out.

    Raises:
        ValueError: a record is not an object, or has no image or captions; the message names its position.
    """
    keys: tuple[str, str, str | None] | None = None
    others: dict[str, None] = {}
    for where, record in records:
        keys = keys or _keys(record, where, image_column, caption_column)
        image_key, caption_key, field = keys
        file = _file_of(record, image_key, where)
        captions = take_captions(record, caption_key, where, field)
        id_key = next((key for key in ID_COLUMNS if record.get(key) is not None and record[key] == record[key]), None)
        image_id = f"{prefix}{file}" if id_key is None else take_id(record, id_key, where)
        own = split if record.get("split") is None else take(record, "split", str, where)
        if listed:
            if file not in listed:
                others[file] = None
                continue
            own = listed[file]
        used = (image_key, caption_key, id_key, "split")
        further = {key: value for key, value in record.items() if key not in used}
        path = os.path.join(root.folder, file)
        table.add(image_id, path, captions, split_named(own) or own, where, further, root.fence)
    for file in others:
        table.skips.note("image that is not in a split list", file)


def image_files(records: Records, image_column: str | None = None) -> Iterator[str]:
    """Yield the image files that records name, if they do."""
    key = image_column
    for _, record in records:
        if isinstance(record, dict):
            key = key or _image_key(record)
            if record.get(key) is not None:
                yield _plain(record[key])


def _file_of(record: Any, key: str, where: str) -> str:
    if key in ID_COLUMNS:  # images named by their ids
        return take_id(record, key, where)
    return _plain(take(record, key, str, where))


def _plain(file: Any) -> str:
    """Return an image file without the number of the caption that token files append to it."""
    name = str(whole(file)).strip()
    return _NUMBER.sub("", name) if "#" in name else name


def _image_key(names: Sequence[str] | dict[str, Any]) -> str | None:
    return find_name(names, IMAGE_NAMES) or next((name for name in ID_COLUMNS if name in names), None)


def _keys(
    first: Any, where: str, image_column: str | None, caption_column: str | None
) -> tuple[str, str, str | None]:
    """Return the keys of image and captions in the first record, and the field of the captions if they are structs."""
    names = list(take_object(first, where))
    image_key = image_column or _image_key(names)
    caption_key, field = split_field(caption_column, names) if caption_column else (find_name(names), None)
    if "conversations" in names and caption_key is None:
        raise ValueError(
            f"{where}: these are conversations (as in LLaVA and ShareGPT4V), not captions. Choose the answers "
            'that describe the image, and write them to a metadata.jsonl, with a line {"file_name": row["image"], '
            '"captions": [row["conversations"][1]["value"]]} for each.'
        )
    for key, setting, what in ((image_key, "image_column", "images"), (caption_key, "caption_column", "captions")):
        if key is None:
            urls = any(isinstance(value, str) and _URL.match(value) for value in (*first.values(), *names))
            more = f" The images are URLs: {FETCH[0].lower()}{FETCH[1:]}" if urls and what == "images" else ""
            raise ValueError(
                f"{where}: which of the keys contains the {what}? Set --{setting} to one of {', '.join(names)}.{more}"
            )
    assert image_key is not None and caption_key is not None
    return image_key, caption_key, field


def take_object(record: Any, where: str) -> dict[str, Any]:
    """Return a record that is an object; raises ValueError otherwise."""
    if not isinstance(record, dict) or not record:
        raise ValueError(
            f"{where}: expected an object with 'file_name' and 'captions', found {type(record).__name__}."
        )
    return record
