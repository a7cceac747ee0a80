"""The final step of every list of captions: rows are checked, merged by image, and become a DatasetDict."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value

from hf_distinct.data.arrow_files import BATCH_ROWS, CaptionFiles, Found, Rows
from hf_distinct.data.further import add_kinds, fitting, further_features, tell_differing, usable_columns
from hf_distinct.data.selections import first_places
from hf_distinct.data.skips import Skips
from hf_distinct.data.table import SPLITS, caption_features, find_file
from hf_distinct.data.texts import NO_CAPTION, clean_texts, is_storable
from hf_distinct.files.fence import Fence

MISSING = "missing image file"
URL_NAMED = "image that is a URL (download it first, for instance with img2dataset)"
_URL = re.compile(r"(^|/)[A-Za-z][\w+.-]+:/")
# `file` as the source names it; `found` where it is, "" if it cannot be used; `further` as JSON.
_CHECKED = Features(
    {name: Value("string") for name in ("image_id", "file", "found", "split", "where", "further")}
    | {"captions": [Value("string")]}
)


@dataclass
class _Row:
    image_id: str
    file: str
    captions: Sequence[Any]
    split: str
    where: str
    further: Mapping[str, Any]
    fence: Fence | None


class CaptionTable:
    """Collects rows from a source, then checks files and captions and builds the splits.

    With more than `BATCH_ROWS` rows, they are written to files: memory holds 16 bytes of each.

    Args:
        source: the file being read, as messages name it.
        strict: raise an error for a skip.
        files: where to write many rows, and where later runs find them; None keeps them in memory.
    """

    def __init__(
        self, source: str | os.PathLike[str], strict: bool = False, files: CaptionFiles | None = None
    ) -> None:
        self.skips = Skips(str(source), strict)
        self._target = files
        self._pending: list[_Row] = []
        self._checked: Rows | None = None  # None until there are many
        # Hashes: they find the few rows that may have the id or the file of another.
        self._ids, self._files = array("q"), array("q")
        self._unusable: dict[str, None] = {}
        self._kinds: dict[str, set[str]] = {}
        self._differing: set[str] = set()

    def add(
        self,
        image_id: str,
        file: str | os.PathLike[str],
        captions: Sequence[Any],
        split: str,
        where: str,
        further: Mapping[str, Any] | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Add a row; a further row with the same file and split adds its new captions to the first, whatever its id.

        Args:
            image_id: the image's id, unique over all splits.
            file: the path of the image.
            captions: its captions, as `texts_of` returns them.
            split: "train", "validation" or "test".
            where: position in the source (line, index), for messages.
            further: further columns. Those that differ among the rows of one file are ignored.
            fence: the folders that the image must be in; None for any.

        Raises:
            ValueError: unknown split, an earlier image is outside of its folders, or (strict) was skipped.
        """
        if split not in SPLITS:
            raise ValueError(f"{where}: unknown split {split!r}; expected one of {', '.join(SPLITS)}.")
        if len(self._pending) == BATCH_ROWS:
            self._check_pending(self._target)
        self._pending.append(_Row(image_id, os.path.abspath(file), captions, split, where, further or {}, fence))

    def finish(self) -> DatasetDict:
        """Merge the rows of each image, and build the splits that have at least one row.

        Captions are stripped; empty ones and those over `MAX_CAPTION_CHARACTERS` are skipped, and so are images
        without a caption and images whose file is missing. All skips are reported in one warning.

        Returns:
            `DatasetDict` with columns `image` (files stay encoded on disk until read), `captions` and `image_id`, and
            further columns.

        Raises:
            ValueError: no row is left, an id is used for two files or a file in two splits, an image is outside of its
                folders, or (strict) anything was skipped.
        """
        files = None if self._checked is None else self._target
        self._check_pending(files)
        assert self._checked is not None
        further = usable_columns(self._kinds)
        features = Features({**caption_features(), **further})
        splits = {split: Rows(features, files.split_file(split) if files else None) for split in SPLITS}
        named: set[str] = set()
        for table in self._merged(self._checked.dataset()):
            named |= set(table["split"].unique().to_pylist())
            usable = self._usable(table)
            for split, rows in splits.items():
                rows.write(_columns(table.filter(pc.and_(usable, pc.equal(table["split"], split))), further))
        for split in SPLITS:
            if split in named and not splits[split].count:
                self.skips.add("split without any usable image", split)
        loaded = {split: rows.dataset() for split, rows in splits.items() if rows.count}
        if not loaded:
            self._refuse()
        found = self._found()
        report(self.skips.source, found)
        whole = files.keep(loaded, found) if files else DatasetDict(loaded)
        return without_differing(whole, found)

    def _refuse(self) -> None:
        """Raise ValueError because no row is usable."""
        if not self._ids:
            raise ValueError(f"{self.skips.source}: it contains no images.")
        raise ValueError(
            f"{self.skips.source}: none of the {len(set(self._files))} images is usable: {self.skips.summary()}. "
            "If files are missing, set image_root to the right image folder."
        )

    def _found(self) -> Found:
        skips, notes = self.skips.names, self.skips.notes
        missing = [file for reason in (MISSING, URL_NAMED) for file in skips.get(reason, [])]
        kinds = {name: sorted(kinds) for name, kinds in self._kinds.items()}
        return Found(skips, notes, missing, kinds, sorted(self._differing))

    def _check_pending(self, files: CaptionFiles | None) -> None:
        """Look for the pending rows' files, clean their captions, and keep both."""
        columns: dict[str, list[Any]] = {name: [] for name in _CHECKED}
        for row in self._pending:
            found = self._find(row)
            captions = clean_texts(row.captions, row.image_id, self.skips) if found else []
            if found:
                add_kinds(self._kinds, [row.further])
            kept = {name: value for name, value in row.further.items() if not isinstance(value, (dict, list))}
            further = json.dumps(kept) if kept else "{}"
            values = (row.image_id, row.file, found, row.split, row.where, further, captions)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
        for name in ("image_id", "file", "where"):
            columns[name] = [each if is_storable(each) else ascii(each) for each in columns[name]]
        self._ids.extend(map(hash, columns["image_id"]))
        self._files.extend(map(hash, columns["file"]))
        if self._checked is None:
            self._checked = Rows(_CHECKED, files.new_file("checked") if files else None)
        self._checked.write(pa.table(columns, schema=_CHECKED.arrow_schema))
        self._pending = []

    def _find(self, row: _Row) -> str:
        """Return the file of a row's image; "" if it cannot be used."""
        if row.file in self._unusable:
            return ""
        if (file := find_file(row.file)) is None:
            reason, name = URL_NAMED if _URL.search(row.file) else MISSING, row.file
        else:
            if row.fence is not None:
                row.fence.check(file, row.where)
            if is_storable(file):
                return file
            reason, name = "image file whose name is not UTF-8 (rename it)", file
        self._unusable[row.file] = None
        self.skips.add(reason, name)
        return ""

    def _usable(self, table: pa.Table) -> Any:
        """Return a mask of the rows that have a file and captions, and record those without captions."""
        there = pc.not_equal(table["found"], "")
        told = pc.greater(pc.list_value_length(table["captions"]), 0)
        for image_id in table["image_id"].filter(pc.and_(there, pc.invert(told))).to_pylist():
            self.skips.add(NO_CAPTION, image_id)
        return pc.and_(there, told)

    def _merged(self, rows: Dataset) -> Iterator[pa.Table]:
        """Yield one row per image, in the order of their first rows."""
        rows, first = rows.with_format("arrow"), self._first_rows()
        if first is None:
            yield from rows.iter(BATCH_ROWS)
            return
        order = np.argsort(first, kind="stable")
        begins = np.flatnonzero(np.diff(first[order], prepend=-1))
        cuts = [*begins[np.diff(begins // BATCH_ROWS, prepend=-1) > 0].tolist(), len(order)]
        for start, stop in zip(cuts, cuts[1:], strict=False):
            yield self._merge(rows[order[start:stop]].to_pylist(), first[order[start:stop]])

    def _first_rows(self) -> np.ndarray | None:
        """Return for each row the first one of its image; None if no image has several."""
        ids, files = (np.frombuffer(each, dtype=np.int64) for each in (self._ids, self._files))
        by_id, by_file = first_places(ids), first_places(files)
        if np.array_equal(by_id, by_file):
            return None if np.array_equal(by_id, np.arange(len(ids))) else by_file
        # An id of several files, or a file of several ids: each row joins an earlier one with its id, else its file.
        odd, first = by_id != by_file, by_file.copy()
        of_id: dict[int, int] = {}
        of_file: dict[int, int] = {}
        for row in np.flatnonzero(np.isin(ids, ids[odd]) | np.isin(files, files[odd])).tolist():
            join = of_id.get(ids[row], of_file.get(files[row]))
            if join is None:
                of_id[ids[row]] = of_file[files[row]] = join = row
            first[row] = join
        return first

    def _merge(self, rows: list[dict[str, Any]], first: np.ndarray) -> pa.Table:
        """Merge rows with the same first row, which follow each other."""
        merged: list[dict[str, Any]] = []
        for row, begins in zip(rows, np.diff(first, prepend=-1), strict=True):
            if begins:
                merged.append(row)
            else:
                self._join(merged[-1], row)
        return pa.table({name: [row[name] for row in merged] for name in _CHECKED}, schema=_CHECKED.arrow_schema)

    def _join(self, first: dict[str, Any], row: dict[str, Any]) -> None:
        if first["file"] != row["file"]:
            raise ValueError(
                f"{self.skips.source}: image id {row['image_id']!r} appears twice: {first['where']} "
                f"({first['file']!r}, {first['split']}) and {row['where']} ({row['file']!r}, {row['split']}). Give "
                "each image its own id, in one split."
            )
        if first["split"] != row["split"]:
            raise ValueError(
                f"{self.skips.source}: the image {row['file']!r} appears twice: {first['where']} ({first['split']}) "
                f"and {row['where']} ({row['split']}). Put it into one split."
            )
        for caption in row["captions"]:
            if caption in first["captions"]:
                self.skips.note("repeated caption of image", first["image_id"])
            else:
                first["captions"].append(caption)
        if first["further"] != row["further"]:
            one, other = json.loads(first["further"]), json.loads(row["further"])
            self._differing |= {name for name in {**one, **other} if one.get(name) != other.get(name)}


def read_once(files: CaptionFiles, source: str | os.PathLike[str], read: Callable[[], CaptionTable]) -> DatasetDict:
    """Return the splits of a list of captions from the files of an earlier run, or read it.

    Args:
        files: the files, and what they depend on.
        source: the list, as messages name it.
        read: returns the table with all rows, which has these files.
    """
    if (kept := files.open()) is None:
        return read().finish()
    splits, found = kept
    report(str(source), found)
    return without_differing(splits, found)


def report(source: str, found: Found) -> None:
    """Log what was skipped, and which further columns there are."""
    skips = Skips(source)
    skips.names, skips.notes = found.skips, found.notes
    skips.warn()
    tell_differing(source, found.differing)
    kinds = {name: set(kinds) for name, kinds in found.kinds.items() if name not in found.differing}
    further_features(kinds, source)


def without_differing(splits: DatasetDict, found: Found) -> DatasetDict:
    """Remove the columns that differ among the rows of an image."""
    return DatasetDict(
        {
            split: rows.remove_columns([name for name in rows.column_names if name in found.differing])
            for split, rows in splits.items()
        }
    )


def _columns(table: pa.Table, further: Features) -> pa.Table:
    """Convert checked rows to the columns of every source."""
    paths = table["found"].combine_chunks()
    images = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
    columns: dict[str, Any] = {"image": images, "captions": table["captions"], "image_id": table["image_id"]}
    if further:
        records = [json.loads(each) for each in table["further"].to_pylist()]
        for name, feature in further.items():
            columns[name] = [fitting(record.get(name), feature.dtype) for record in records]
    return pa.table(columns, schema=Features({**caption_features(), **further}).arrow_schema)
