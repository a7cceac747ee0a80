"""Write captions of pictures one by one, as JSONL or parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ENDINGS = (".jsonl", ".parquet")
GROUP = 16_384  # rows per row group of a parquet file


@contextmanager
def caption_writer(path: Path, ending: str, samples: bool) -> Iterator[Callable[[str, str | list[str]], None]]:
    """Open a file for captions.

    Args:
        path: the file.
        ending: one of `ENDINGS`. In JSONL, each line is ``{"file_name": ..., "caption": ...}``; parquet has these
            columns.
        samples: whether each picture has a list of captions, which is called ``captions``.

    Yields:
        A function that writes the name of a picture and its captions.
    """
    key = "captions" if samples else "caption"
    if ending == ".jsonl":
        with open(path, "w", encoding="utf-8") as lines:
            yield lambda name, said: print(json.dumps({"file_name": name, key: said}), file=lines)
        return
    schema = pa.schema([("file_name", pa.string()), (key, pa.list_(pa.string()) if samples else pa.string())])
    names: list[str] = []
    captions: list[str | list[str]] = []
    with pq.ParquetWriter(path, schema) as parquet:

        def write_group() -> None:
            parquet.write_table(pa.table([pa.array(names), pa.array(captions)], schema=schema))
            names.clear()
            captions.clear()

        def write(name: str, said: str | list[str]) -> None:
            names.append(name.encode(errors="replace").decode())  # a file name may not be UTF-8
            captions.append(said)
            if len(names) == GROUP:
                write_group()

        yield write
        if names:
            write_group()
