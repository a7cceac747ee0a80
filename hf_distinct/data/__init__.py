"""Captioned images: sources, cached CLIP embeddings, mined neighbours, and the collator.

Every source is loaded as a `datasets.Dataset` with the columns `image`, `captions` (list of texts) and `image_id`
(text). The names below are imported on first use, so importing this package is fast.
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
    "load_caption_file": "caption_files",
    "load_image_folder": "image_folder",
    "load_text_beside": "text_beside",
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
    dataset_config: str | None = None,
) -> DatasetDict:
    """Load captioned images from a file, a folder or the Hub; the format is recognised.

    Rows with the same image are merged, in every format.

    Args:
        path: One of

            - a JSON file in Karpathy's format (`load_karpathy`) or COCO's (`load_coco_captions`), or a list as in BLIP
              and LAVIS (`load_caption_file`);
            - a table (.csv, .tsv, .txt), the token file of Flickr8k or Flickr30k, or a .jsonl (`load_caption_file`);
            - COCO's folder, with `annotations/captions_train2017.json` (`load_coco_folder`);
            - a folder of images with `metadata.jsonl` or `metadata.csv` (`load_image_folder`), with one of the files
              above (`captions.txt`, `results.csv`, `coco_karpathy_train.json`, ...), or with a .txt file for each
              image (`load_text_beside`);
            - WebDataset shards: a folder of .tar files, one file, or `shards/{000..099}.tar` (`load_tar_shards`);
            - a `save_to_disk` folder, a parquet file or a folder of them, or the id of a dataset on the Hub
              (`load_columns`).
        image_root: folder of the images that a caption file or a column of paths names; by default the file's own
            folder. Only files in this folder are read ("/" allows any file), and URLs in local files are not
            followed.
        strict: raise an error for everything that would be skipped with a warning (missing images, empty captions,
            ...).
        image_column: column or key of the images, if the source has one; by default the one with a usual name.
        caption_column: column or key of the captions, or `COLUMN.FIELD` of structs; by default "captions", or the
            only one with another usual name.
        dataset_config: name of the configuration, for datasets with several, on the Hub or in a folder.

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id`, and further columns with
        texts, numbers or booleans, which rewards can read. Images stay encoded until a row is read.

    Raises:
        FileNotFoundError: there is no such file or folder, and no such dataset on the Hub.
        ValueError: an unknown format, broken content, a path that leads out of the folder, or no usable image;
            (strict) anything skipped.
    """
    from hf_distinct.data.caption_files import TABLE_ENDINGS, load_caption_file
    from hf_distinct.data.columns import HUB_ID, load_columns
    from hf_distinct.data.table import refuse_settings
    from hf_distinct.data.tar_shards import is_tar, load_tar_shards

    place = Path(path)
    if place.is_dir():
        return _load_folder(place, image_root, strict, image_column, caption_column, dataset_config)
    if is_tar(os.fspath(path)):
        refuse_settings(
            path, "WebDataset shards", image_root=image_root, image_column=image_column, dataset_config=dataset_config
        )
        return load_tar_shards(path, strict, caption_column)
    if place.suffix.lower() == ".json":
        from hf_distinct.data.coco import load_json_captions

        refuse_settings(path, "a JSON file", dataset_config=dataset_config)
        return load_json_captions(place, image_root, strict, image_column, caption_column)
    if place.suffix.lower() in TABLE_ENDINGS:
        refuse_settings(path, "a caption file", dataset_config=dataset_config)
        return load_caption_file(place, image_root, strict, image_column, caption_column)
    if place.suffix.lower() == ".parquet" or (not place.exists() and HUB_ID.fullmatch(os.fspath(path))):
        return load_columns(path, image_root, strict, image_column, caption_column, dataset_config)
    if not place.exists():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}.")
    raise ValueError(
        f"{str(path)!r} is neither a caption file (.json, .jsonl, .csv, .tsv, .txt, .token) nor a .parquet file, "
        "a .tar file, or a folder."
    )


def _load_folder(
    folder: Path,
    image_root: str | os.PathLike[str] | None,
    strict: bool,
    image_column: str | None,
    caption_column: str | None,
    dataset_config: str | None,
) -> DatasetDict:
    from hf_distinct.data.caption_files import find_caption_files, load_caption_file
    from hf_distinct.data.coco import find_coco_files, load_coco_folder, load_json_captions
    from hf_distinct.data.columns import load_columns
    from hf_distinct.data.image_folder import find_metadata, load_image_folder
    from hf_distinct.data.opening import holds_parquet, is_saved
    from hf_distinct.data.table import refuse_settings
    from hf_distinct.data.tar_shards import is_tar, load_tar_shards
    from hf_distinct.data.text_beside import holds_texts, load_text_beside

    config = {"dataset_config": dataset_config}
    columns = {"image_column": image_column, "caption_column": caption_column}
    if find_metadata(folder):
        refuse_settings(
            folder, "a folder with its images", image_root=image_root, image_column=image_column, **config
        )
        return load_image_folder(folder, strict, caption_column)
    if find_coco_files(folder):
        refuse_settings(folder, "COCO's folder", **columns, **config)
        return load_coco_folder(folder, image_root, strict)
    if is_saved(folder):
        return load_columns(folder, image_root, strict, **columns, **config)
    if any(map(is_tar, map(str, folder.rglob("*.[tT]*")))):
        refuse_settings(folder, "WebDataset shards", image_root=image_root, image_column=image_column, **config)
        return load_tar_shards(folder, strict, caption_column)
    if holds_parquet(folder):
        return load_columns(folder, image_root, strict, **columns, **config)
    if files := find_caption_files(folder):
        refuse_settings(folder, "a folder with a caption file", **config)
        if len(files) == 1 and (file := next(iter(files.values()))).suffix.lower() == ".json":
            return load_json_captions(file, image_root, strict, **columns)
        return load_caption_file(files, image_root, strict, **columns)
    if holds_texts(folder):
        refuse_settings(folder, "a folder of images with texts", image_root=image_root, **columns, **config)
        return load_text_beside(folder, strict)
    raise ValueError(
        f"The folder {str(folder)!r} contains no metadata.jsonl or metadata.csv, no captions.txt or other caption "
        "file with a usual name, no captions_train2017.json, no .tar or .parquet files, no .txt files next to images, "
        "and was not written by save_to_disk. Pass a caption file instead."
    )


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"hf_distinct.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
