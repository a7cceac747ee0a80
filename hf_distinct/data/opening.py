"""Open the formats of `datasets` safely: a `save_to_disk` folder, parquet files, a folder of them, or the Hub.

`datasets` follows the instructions of files in a local folder: the `configs` of its README.md and the `state.json` of
`save_to_disk` may name other folders, or servers. Here these are checked first, and any problem with a file becomes
one ValueError that names it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError

from hf_distinct.data.table import read_json, refuse_settings
from hf_distinct.data.texts import MAX_TEXT_BYTES, decode_text, read_bytes
from hf_distinct.files.fence import GIVE_IT, Fence, is_address
from hf_distinct.text.problems import refuse
from hf_distinct.text.yaml_files import parse_yaml

SAVED = ("dataset_dict.json", "dataset_info.json")
CARDS = ("README.md", ".huggingface.yaml")
COPY = "copy it into this folder"
_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED)


def holds_parquet(folder: Path) -> bool:
    """Whether there are parquet files in a folder or its subfolders."""
    return next(folder.rglob("*.parquet"), None) is not None


def open_columns(path: str | os.PathLike[str], config: str | None = None) -> DatasetDict:
    """Open a `save_to_disk` folder, a parquet file, a folder of these, or a dataset on the Hub.

    Args:
        path: folder, file, or id.
        config: name of the configuration, if there are several.

    Raises:
        FileNotFoundError: the path does not exist, and there is no such dataset on the Hub.
        ValueError: a file is broken, or names a file outside of its folder; or a configuration must be selected.
    """
    place = Path(path)
    if place.is_dir() and is_saved(place):
        refuse_settings(path, "a folder of save_to_disk", dataset_config=config)
        with_parts = _saved_folders(place)
        refuse(*(_saved_problems(folder, place) for folder in with_parts))
        return _named(path, lambda: _with_texts(_as_splits(load_from_disk(str(place)))))
    if place.is_file():
        refuse_settings(path, "a file", dataset_config=config)
        refuse(_parquet_problems(place))
        return _named(path, lambda: load_dataset("parquet", data_files=str(place)))
    if place.is_dir():
        refuse(_card_problems(place))
        for file in sorted(place.rglob("*.parquet")):
            Fence([place], GIVE_IT).check(file, str(place))
            refuse(_parquet_problems(file))
    try:
        return _named(path, lambda: load_dataset(os.fspath(path), config))
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
        if place.is_dir():
            raise
        raise FileNotFoundError(
            f"There is no file or folder {str(path)!r}, and no such dataset can be loaded from the Hub: {error}"
        ) from error


def _as_splits(loaded: Any) -> DatasetDict:
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})


def _named(path: str | os.PathLike[str], load: Any) -> DatasetDict:
    """Load, and add the dataset's name to the errors of pyarrow and datasets on broken files (of almost any type)."""
    try:
        loaded = load()
        for rows in loaded.values():
            rows.data.validate(full=True)  # otherwise pyarrow would read beyond the end of a broken file
        return loaded
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(error, (DatasetNotFoundError, ConnectionError, FileNotFoundError)):
            raise
        if isinstance(cause, OSError) and cause.errno is not None:  # the disk is full, or the file is locked
            raise OSError(cause.errno, f"{path}: {cause}") from error
        advice = _advice(str(error if isinstance(error, ValueError) else cause) or type(cause).__name__)
        raise ValueError(f"{path}: {advice}") from error


def _advice(message: str) -> str:
    """Return what to do about an error of `load_dataset`, which lists the available configurations."""
    if configs := re.search(r"\[('[^\]]+')\]", message) if re.search("[Cc]onfig", message) else None:
        return f"set --dataset_config to one of its configurations: {configs[1]}."
    if "scripts are no longer supported" in message:
        return (
            "this dataset is a script, which datasets does not run. Load it with an older version of datasets, write "
            "it with save_to_disk, and pass that folder."
        )
    return f"it cannot be read: {message}"


def _parquet_problems(file: Path) -> Iterator[str]:
    """Yield a message if a parquet file claims more rows than bytes: each row needs an image or a text."""
    size = file.stat().st_size
    try:
        rows = pq.read_metadata(file).num_rows
    except Exception as error:  # from pyarrow: not a parquet file, a truncated one, an invalid length
        yield f"{file}: not a readable parquet file: {error}"
        return
    if not 0 <= rows <= size:
        yield f"{file}: it claims {rows} rows but has {size} bytes, so it is broken or malicious."


def _card_problems(folder: Path) -> Iterator[str]:
    """Yield files outside of a folder, or on a server, that its card tells `datasets` to load."""
    for name in CARDS:
        card = folder / name
        if not card.is_file():
            continue
        text = decode_text(read_bytes(card, MAX_TEXT_BYTES), str(card))
        front = _FRONT.match(text) if card.suffix == ".md" else re.match("(.*)", text, re.DOTALL)
        about = parse_yaml(front[1], str(card)) if front else None
        configs = about.get("configs") if isinstance(about, dict) else None
        for config in configs if isinstance(configs, list) else []:
            if isinstance(config, dict):
                for file in _texts(config.get("data_files")) + _texts(config.get("data_dir")):
                    yield from _leads_out(file, folder, str(card))


def _texts(value: Any) -> list[str]:
    """Return every text in a YAML value, which is finite because aliases are rejected."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def _leads_out(file: str, folder: Path, where: str) -> Iterator[str]:
    if is_address(file):
        yield f"{where} names {file!r}. URLs in a local file are not followed: download it, and name the file."
    else:
        yield from Fence([folder], COPY).problems(folder / file, where)


def _with_texts(splits: DatasetDict) -> DatasetDict:
    """Empty the fields of dataset_info.json that should contain a text and do not: `datasets` cannot join others."""
    for rows in splits.values():
        for name in ("description", "citation", "homepage", "license"):
            if not isinstance(getattr(rows.info, name), str):
                setattr(rows.info, name, "")
    return splits


def _saved_folders(folder: Path) -> list[Path]:
    """Return the folders of the splits, or the folder itself."""
    if not (folder / SAVED[0]).is_file():
        return [folder]
    document = read_json(folder / SAVED[0])
    splits = document.get("splits") if isinstance(document, dict) else None
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise ValueError(f'{folder / SAVED[0]}: expected {{"splits": ["train", ...]}}, as save_to_disk writes it.')
    refuse(*(_leads_out(split, folder, str(folder / SAVED[0])) for split in splits))
    return [folder / split for split in splits]


def _saved_problems(part: Path, folder: Path) -> Iterator[str]:
    state = part / "state.json"
    document = read_json(state) if state.is_file() else None
    files = document.get("_data_files") if isinstance(document, dict) else None
    if not isinstance(files, list) or not all(isinstance(each, dict) and "filename" in each for each in files):
        yield f'{state}: expected {{"_data_files": [{{"filename": ...}}]}}, as save_to_disk writes it.'
        return
    for each in files:
        yield from _leads_out(os.path.join(part, str(each["filename"])), folder, str(state))
