"""Captioned images: sources, cached CLIP embeddings, mined neighbours, and the collator.

Every source gives a `datasets.Dataset` with the columns `image`, `captions` (list of texts) and `image_id` (text). The
names below are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import DatasetDict

_HOMES = {
    "load_karpathy": "coco",
    "load_coco_captions": "coco",
    "load_coco_folder": "coco",
    "load_image_folder": "image_folder",
    "load_columns": "columns",
    "load_tar_shards": "tar_shards",
    "ensure_splits": "splits",
    "to_rgb": "images",
    "decode_image": "images",
    "stable_hash": "hashing",
    "CaptionEmbeddings": "embeddings",
    "embed_dataset": "embeddings",
    "mine_neighbours": "mining",
    "CaptionCollator": "collator",
}

__all__ = ["load_captions", *_HOMES]


def load_captions(
    path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    strict: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> DatasetDict:
    """Load captioned images from a file, a folder or the Hub, whichever of the known forms it has.

    Args:
        path: One of

            - a JSON file in Karpathy's form (`load_karpathy`) or COCO's (`load_coco_captions`);
            - COCO's folder, with `annotations/captions_train2017.json` (`load_coco_folder`);
            - a folder of pictures with `metadata.jsonl` or `metadata.csv` (`load_image_folder`);
            - WebDataset shards: a folder of .tar files, one file, or `shards/{000..099}.tar` (`load_tar_shards`);
            - a `save_to_disk` folder, a parquet file or a folder of them, or the id of a data set on the Hub
              (`load_columns`).
        image_root: Folder of the images that a JSON file or a column of paths names; by default the file's own folder.
        strict: Whether whatever would be skipped with a warning (missing images, empty captions, ...) is an error.
        image_column: Column of the images, where the source has columns; "image" by default.
        caption_column: Column or key of the captions, where that can be chosen; "captions" by default.

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id`. Images stay encoded until a
        row is read.

    Raises:
        FileNotFoundError: There is no such file or folder, and no such data set on the Hub.
        ValueError: None of the known forms, broken content, or no usable image; (strict) anything skipped.
    """
    from hf_distinct.data.tar_shards import is_tar, load_tar_shards

    place = Path(path)
    if place.is_dir():
        return _load_folder(place, image_root, strict, image_column, caption_column)
    if is_tar(os.fspath(path)):
        _refuse(path, "WebDataset shards", image_root=image_root, image_column=image_column)
        return load_tar_shards(path, strict, caption_column)
    if place.suffix.lower() == ".json":
        from hf_distinct.data.coco import load_json_captions

        _refuse(path, "a JSON file", image_column=image_column, caption_column=caption_column)
        return load_json_captions(place, image_root, strict)
    from hf_distinct.data.columns import HUB_ID, load_columns

    if place.suffix.lower() == ".parquet" or (not place.exists() and HUB_ID.fullmatch(os.fspath(path))):
        return load_columns(path, image_root, strict, image_column, caption_column)
    if not place.exists():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}.")
    raise ValueError(
        f"{str(path)!r} is neither a .json file of captions nor a .parquet file, a .tar file, or a folder."
    )


def _load_folder(
    folder: Path,
    image_root: str | os.PathLike[str] | None,
    strict: bool,
    image_column: str | None,
    caption_column: str | None,
) -> DatasetDict:
    from hf_distinct.data.coco import find_coco_files, load_coco_folder
    from hf_distinct.data.columns import holds_parquet, is_saved, load_columns
    from hf_distinct.data.image_folder import find_metadata, load_image_folder
    from hf_distinct.data.tar_shards import TAR_ENDINGS, load_tar_shards

    if find_metadata(folder):
        _refuse(folder, "a folder that holds its images", image_root=image_root, image_column=image_column)
        return load_image_folder(folder, strict, caption_column)
    if find_coco_files(folder):
        _refuse(folder, "COCO's folder", image_column=image_column, caption_column=caption_column)
        return load_coco_folder(folder, image_root, strict)
    if is_saved(folder):
        return load_columns(folder, image_root, strict, image_column, caption_column)
    if any(file.name.endswith(TAR_ENDINGS) for file in folder.rglob("*.t*")):
        _refuse(folder, "WebDataset shards", image_root=image_root, image_column=image_column)
        return load_tar_shards(folder, strict, caption_column)
    if holds_parquet(folder):
        return load_columns(folder, image_root, strict, image_column, caption_column)
    raise ValueError(
        f"The folder {str(folder)!r} holds no metadata.jsonl or metadata.csv, no captions_train2017.json, no .tar or "
        ".parquet files, and was not written by save_to_disk. Give a JSON file of captions?"
    )


def _refuse(path: object, form: str, **settings: object) -> None:
    """Raise ValueError for a setting that this form of data has no use for: it would be passed over in silence."""
    for name, value in settings.items():
        if value is not None:
            raise ValueError(f"{str(path)!r} is {form}: leave out {name}={str(value)!r}.")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"hf_distinct.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
