"""WebDataset shards: tar files in which the files of a sample stand together and share the name before the dot."""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from datasets import Dataset, DatasetDict, Features, Value
from transformers.utils import logging

from hf_distinct.data.skips import Skips
from hf_distinct.data.table import SPLITS, caption_features, clean_captions, split_named

logger = logging.get_logger(__name__)

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def load_tar_shards(
    path: str | os.PathLike[str], strict: bool = False, caption_column: str | None = None
) -> DatasetDict:
    """Load WebDataset shards (as img2dataset writes them): `000000012.jpg`, `000000012.txt`, `000000012.json`.

    Each shard is read once, from front to back, never unpacked: the encoded images go into the cache of `datasets`,
    one after the other, and are mapped from there; a second call finds them. The captions of a sample are the key
    `captions` of its .json, else the lines of its .txt, else the key `caption` of its .json.

    Args:
        path: A folder with .tar files, one such file, or a pattern `shards/{00000..00099}.tar`, also of URLs that
            fsspec reads. A shard belongs to the split that its name begins with or its folder has (`val-003.tar`,
            `val/003.tar`), else to train.
        strict: Whether a sample without image or caption or a broken shard is an error.
        caption_column: Where the captions are instead: a key of the .json, or the ending of a file ("txt").

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id` (shard and key).

    Raises:
        FileNotFoundError: There are no such shards.
        ValueError: No sample is usable; (strict) anything skipped.
    """
    shards: dict[str, list[str]] = {split: [] for split in SPLITS}
    for shard in find_shards(path):
        shards[_split_of(shard)].append(shard)
    skips, splits = Skips(str(path), strict), {}
    for split, members in shards.items():
        if not members:
            continue
        rows = Dataset.from_generator(
            _rows,
            features=Features({**caption_features(), "problem": Value("string")}),
            # The state of the files is there for the cache of `datasets`, which goes by the arguments.
            gen_kwargs={"shards": tuple(members), "column": caption_column, "states": tuple(map(_state, members))},
        )
        problems = rows.select_columns(["image_id", "problem"])
        good = sum(problem is None for problem in problems["problem"])
        if good < len(rows):
            for row in problems.select(range(good, len(rows))):
                skips.add(row["problem"], row["image_id"])
        if good:
            splits[split] = rows.select(range(good)).remove_columns("problem")
    if not splits:
        raise ValueError(f"{path}: no sample is usable: {skips.summary() or 'there are none'}.")
    skips.warn()
    return DatasetDict(splits)


def is_tar(path: str) -> bool:
    """Whether a path names shards: a tar file, or a pattern of them."""
    return path.endswith(TAR_ENDINGS)


def find_shards(path: str | os.PathLike[str]) -> list[str]:
    """Return the shards that a folder holds, or that a pattern stands for, in order.

    Raises:
        FileNotFoundError: There are none, or one of the pattern is missing.
    """
    place = os.fspath(path)
    if os.path.isdir(place):
        found = sorted(
            file
            for ending in TAR_ENDINGS
            for file in glob.glob(os.path.join(glob.escape(place), "**", f"*{ending}"), recursive=True)
        )
    else:
        found = _expand(place)
        missing = [shard for shard in found if "://" not in shard and not os.path.isfile(shard)]
        if missing:
            raise FileNotFoundError(
                f"There is no shard {missing[0]!r}, one of {len(found)} that {place!r} stands for."
            )
    if not found:
        raise FileNotFoundError(f"There are no .tar files in {place!r}.")
    return [shard if "://" in shard else os.path.abspath(shard) for shard in found]


def _expand(pattern: str) -> list[str]:
    """Write out `{000..012}`, from the left; the digits keep their number."""
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [each for number in numbers for each in _expand(pattern[: found.start()] + number + pattern[found.end() :])]


def _split_of(shard: str) -> str:
    name, folder = PurePosixPath(Path(shard).as_posix()).name, Path(shard).parent.name
    beginning = re.match(r"[a-zA-Z]+", name)
    return (split_named(beginning.group()) if beginning else None) or split_named(folder) or "train"


def _state(shard: str) -> tuple[int, int]:
    if "://" in shard:
        return 0, 0
    state = os.stat(shard)
    return state.st_size, state.st_mtime_ns


def _rows(shards: tuple[str, ...], column: str | None, states: Any) -> Iterator[dict[str, Any]]:
    """Yield the usable samples, and after them what was not, so that a cached result still tells it."""
    skips = Skips("")
    for shard in shards:
        for key, files in _samples(shard, skips):
            name = f"{PurePosixPath(shard).name}/{key}"
            image = next((files[ending] for ending in IMAGE_ENDINGS if ending in files), None)
            if image is None:
                skips.add("sample without an image", name)
            elif captions := clean_captions(_captions(files, column, name, skips), name, skips):
                yield {
                    "image": {"bytes": image, "path": None},
                    "captions": captions,
                    "image_id": name,
                    "problem": None,
                }
    for reason, names in skips.names.items():
        for name in names:
            yield {"image": None, "captions": [], "image_id": name, "problem": reason}


class _Tail:
    """A stream that remembers the last bytes read: a whole archive ends in zeros."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.last = (self.last + data)[-tarfile.BLOCKSIZE :]
        return data

    def end(self) -> bytes:
        """Return the last block of the whole stream."""
        while self.read(tarfile.RECORDSIZE):
            pass
        return self.last


def _tail(stream: Any) -> Any:  # tarfile's types ask for more than it uses
    return _Tail(stream)


def _samples(shard: str, skips: Skips) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and files (by lower-case ending) of each sample of a shard, read as a stream."""
    key = ""
    files: dict[str, bytes] = {}
    try:
        with fsspec.open(shard, "rb") as stream, tarfile.open(fileobj=(tail := _tail(stream)), mode="r|*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith((".", "__")) or "." not in name.name:
                    continue
                stem, _, endings = name.name.partition(".")
                this_key = str(name.with_name(stem))
                if this_key != key:
                    if files:
                        yield key, files
                    key, files = this_key, {}
                content = archive.extractfile(member)
                assert content is not None
                files[endings.lower().rpartition(".")[2]] = content.read()
            if shard.endswith(".tar") and tail.end().strip(b"\0"):
                raise tarfile.ReadError("the end of the archive is missing")  # tarfile says nothing of it
    except (tarfile.TarError, EOFError, OSError) as error:
        # What was read before stays; the sample that was being read may be half of one.
        skips.add(f"broken shard ({type(error).__name__}: {error})", os.path.basename(shard))
        return
    if files:
        yield key, files


def _captions(files: dict[str, bytes], column: str | None, name: str, skips: Skips) -> list[Any]:
    record: Any = {}
    if "json" in files:
        try:
            record = json.loads(files["json"])
        except ValueError:
            skips.add("sample whose .json is broken", name)
    record = record if isinstance(record, dict) else {}
    text = files.get(column or "txt")
    lines = text.decode("utf-8", "replace").splitlines() if text is not None else None
    if column is not None:
        found = record.get(column) if column in record else lines
    else:
        found = record.get("captions") or lines or record.get("caption")
    found = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    return [each for each in found if isinstance(each, str) and each.strip()]
