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
    "load_image_folder": "image_folder",
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
    path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Load captioned images from a file or folder, whichever of the known forms it has.

    Args:
        path: A JSON file in Karpathy's form (`load_karpathy`) or COCO's (`load_coco_captions`), or a folder that holds
            `metadata.jsonl` (`load_image_folder`).
        image_root: Folder of the images that a JSON file names; by default the file's own folder.
        strict: Whether whatever would be skipped with a warning (missing images, empty captions, ...) is an error.

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: None of the known forms, broken content, or no usable image; (strict) anything skipped.
    """
    path = Path(path)
    if path.is_dir():
        from hf_distinct.data.image_folder import METADATA_FILE, load_image_folder

        if image_root is not None:
            raise ValueError(f"{path} is a folder and holds its images: leave out image_root={str(image_root)!r}.")
        if not (path / METADATA_FILE).is_file():
            raise ValueError(f"The folder {str(path)!r} holds no {METADATA_FILE}. Give a JSON file of captions?")
        return load_image_folder(path, strict)
    if path.exists() and path.suffix.lower() != ".json":
        raise ValueError(f"{str(path)!r} is neither a .json file of captions nor a folder that holds metadata.jsonl.")
    from hf_distinct.data.coco import load_json_captions

    return load_json_captions(path, image_root, strict)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"hf_distinct.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
