"""COCO-style sources: Karpathy's split files (COCO, Flickr8k, Flickr30k) and COCO's own caption files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_distinct.data.arrow_files import CaptionFiles
from hf_distinct.data.caption_files import IMAGE_FOLDERS, read_caption_files
from hf_distinct.data.caption_table import CaptionTable, read_once
from hf_distinct.data.json_items import first_item, list_items
from hf_distinct.data.table import (
    find_image_root,
    read_json,
    refuse_settings,
    take,
    take_captions,
    take_id,
)  # fmt: skip
from hf_distinct.data.texts import find_name
from hf_distinct.files.fence import GIVE_IT, Fence

# "restval": COCO validation images outside of Karpathy's 5,000 + 5,000, which are usually added to the training split.
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
ANNOTATIONS = "annotations"


def load_karpathy(
    json_path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Load one of Karpathy's split files (`dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`).

    Images are at `image_root/filepath/filename` (`filepath`, "train2014" or "val2014", is only in COCO's file).
    Flickr's may also be in a folder of `image_root` that the published archive unpacks to. The image id is `cocoid`,
    or `imgid` if there is no `cocoid`.

    Args:
        json_path: `{"images": [{"filepath", "filename", "split", "sentences": [{"raw"}], "cocoid", "imgid"}]}`.
        image_root: folder of the images, or the folder that contains every `filepath`; by default the JSON file's
            own folder.
        strict: raise an error for a missing image, an empty or overlong caption, or an image without captions.

    Returns:
        Splits train (with `restval`), validation and test; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: the JSON file does not exist.
        ValueError: JSON in another format, a duplicate id, or no usable image; (strict) anything skipped.
    """
    files = CaptionFiles([Path(json_path)], "karpathy", image_root, strict)
    return read_once(files, json_path, lambda: _from_karpathy(Path(json_path), image_root, strict, files))


def load_coco_captions(
    json_path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Load a caption file of COCO (`captions_train2017.json`): one annotation per caption, merged by image.

    Args:
        json_path: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`.
        image_root: folder of the images, or its parent (`train2017/` for `captions_train2017.json`). By default the
            file's own folder, or its parent if the file is in `annotations/`.
        strict: as in `load_karpathy`; annotations of unknown images and repeated annotations are errors, too.

    Returns:
        One split, "train"; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: the JSON file does not exist.
        ValueError: JSON in another format, a duplicate id, or no usable image; (strict) anything skipped.
    """
    files = CaptionFiles([Path(json_path)], "coco", image_root, strict)
    return read_once(
        files, json_path, lambda: _from_coco_captions(read_json(json_path), json_path, image_root, strict, files)
    )


def find_coco_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the caption files of COCO in a folder or in its `annotations/`: `{"train": captions_train2017.json, ...}`.

    Raises:
        ValueError: there are files of two years.
    """
    found: dict[str, Path] = {}
    for split, name in (("train", "train"), ("validation", "val")):
        pattern = f"captions_{name}20[0-9][0-9].json"
        files = [file for place in (Path(folder) / ANNOTATIONS, Path(folder)) for file in sorted(place.glob(pattern))]
        if len(files) > 1:
            raise ValueError(
                f"{str(folder)!r} contains {' and '.join(file.name for file in files)}: pass one of these files."
            )
        if files:
            Fence([folder], GIVE_IT).check(files[0], str(folder))
            found[split] = files[0]
    return found


def load_coco_folder(
    folder: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Load COCO as it unpacks: `train2017/`, `val2017/`, `annotations/captions_train2017.json` and so on.

    Args:
        folder: the folder with one or both caption files, of 2014 or 2017, or its parent.
        image_root: folder that contains `train2017/` and `val2017/`; by default `folder`.
        strict: as in `load_coco_captions`.

    Returns:
        Splits train and validation, if their files exist; COCO publishes no captions of its test images.

    Raises:
        FileNotFoundError: there is no caption file.
        ValueError: as in `load_coco_captions`, or there are files of both years.
    """
    files = find_coco_files(folder)
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} contains no captions_train2017.json or other year's caption file.")
    loaded = {split: load_coco_captions(file, image_root, strict)["train"] for split, file in files.items()}
    return DatasetDict(loaded)


def load_json_captions(
    json_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    strict: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> DatasetDict:
    """Load a JSON file in any format: `load_karpathy`, `load_coco_captions` or `load_caption_file`.

    Args:
        json_path: the file.
        image_root: folder of the images; see the loaders.
        strict: raise an error instead of skipping.
        image_column: key of the image file, for `load_caption_file`.
        caption_column: key of the captions, for `load_caption_file`.

    Returns:
        The splits in the file.

    Raises:
        FileNotFoundError: the JSON file does not exist.
        ValueError: as in the loaders, or the file has none of the formats.
    """
    path = Path(json_path)
    if isinstance(first := first_item(path, "images"), dict) and "sentences" in first:
        refuse_settings(path, "a JSON file", image_column=image_column, caption_column=caption_column)
        return load_karpathy(path, image_root, strict)
    files = CaptionFiles([path], "json", image_root, strict, image_column, caption_column)
    return read_once(files, path, lambda: _from_json(path, image_root, strict, image_column, caption_column, files))


def _from_json(
    json_path: Path,
    image_root: Any,
    strict: bool,
    image_column: str | None,
    caption_column: str | None,
    files: CaptionFiles,
) -> CaptionTable:
    document = read_json(json_path)
    images = document.get("images") if isinstance(document, dict) else None
    sentences = isinstance(images, list) and any(isinstance(each, dict) and "sentences" in each for each in images)
    if not sentences and (images is None or "annotations" not in document):
        named = caption_column or any(isinstance(each, dict) and find_name(each) for each in images or ())
        if images and not named:
            raise ValueError(
                f"{json_path}: the captions are missing: expected 'sentences' in each of the images (Karpathy), a "
                f"list 'annotations' next to 'images' (COCO), or captions in a list of images (BLIP). Found the "
                f"keys {sorted(document)}."
            )
        return read_caption_files(json_path, image_root, strict, image_column, caption_column, files)
    refuse_settings(json_path, "a JSON file", image_column=image_column, caption_column=caption_column)
    if sentences:
        return _from_karpathy(json_path, image_root, strict, files)
    return _from_coco_captions(document, json_path, image_root, strict, files)


def _from_karpathy(json_path: Path, image_root: Any, strict: bool, files: CaptionFiles) -> CaptionTable:
    named = (file for _, file, *_ in _karpathy_rows(json_path))
    root = find_image_root(named, json_path, image_root, [json_path.parent], IMAGE_FOLDERS)
    table = CaptionTable(json_path, strict, files)
    for image_id, file, captions, split, where, further in _karpathy_rows(json_path):
        table.add(image_id, os.path.join(root.folder, file), captions, split, where, further, root.fence)
    return table


def _karpathy_rows(json_path: Path) -> Iterator[tuple[str, str, list[Any], str, str, dict[str, Any]]]:
    """Yield id, file, captions, split, position and further keys of each image in one of Karpathy's files."""
    for index, image in list_items(json_path, "images"):
        where = f"{json_path}: images[{index}]"
        folder = take(image, "filepath", str, where) if isinstance(image, dict) and "filepath" in image else ""
        file = os.path.join(folder, take(image, "filename", str, where))
        split = take(image, "split", str, where)
        if split not in KARPATHY_SPLITS:
            raise ValueError(f"{where}: unknown split {split!r}; expected one of {', '.join(KARPATHY_SPLITS)}.")
        captions = take_captions(image, "sentences", where)
        id_key = "cocoid" if "cocoid" in image else "imgid"
        used = {"filepath", "filename", "split", "sentences", "sentids", id_key}
        further = {key: value for key, value in image.items() if key not in used}
        yield take_id(image, id_key, where), file, captions, KARPATHY_SPLITS[split], where, further


def _from_coco_captions(
    document: Any, json_path: str | os.PathLike[str], image_root: Any, strict: bool, files_kept: CaptionFiles
) -> CaptionTable:
    table = CaptionTable(json_path, strict, files_kept)
    images = take(document, "images", list, str(json_path))
    captions: dict[str, list[Any]] = {
        take_id(image, "id", f"{json_path}: images[{index}]"): [] for index, image in enumerate(images)
    }
    seen: dict[str, tuple[int, str, str]] = {}
    for index, annotation in enumerate(take(document, "annotations", list, str(json_path))):
        where = f"{json_path}: annotations[{index}]"
        image_id = take_id(annotation, "image_id", where)
        texts = take_captions(annotation, "caption", where)
        if "id" in annotation:
            annotation_id = take_id(annotation, "id", where)
            first, *content = seen.setdefault(annotation_id, (index, image_id, repr(texts)))
            if content != [image_id, repr(texts)]:
                raise ValueError(f"{where}: annotation id {annotation_id!r} is already used at annotations[{first}].")
            if first != index:
                table.skips.add("repeated annotation", annotation_id)
                continue
        if annotation.get("is_rejected") or annotation.get("is_precanned"):  # VizWiz: no caption, or a standard one
            table.skips.note("annotation that VizWiz rejected, skipped, of image", image_id)
        elif image_id in captions:
            captions[image_id] += texts
        else:
            table.skips.add("annotation of an image that is not listed", image_id)
    files = [take(image, "file_name", str, f"{json_path}: images[{index}]") for index, image in enumerate(images)]
    # The images of captions_train2017.json are in train2017/.
    own, subfolder = Path(json_path).parent, Path(json_path).stem.partition("_")[2]
    roots = [own, own.parent] if own.name == ANNOTATIONS else [own]
    root = find_image_root(files, json_path, image_root, roots, [subfolder, *IMAGE_FOLDERS])
    for index, (image, file) in enumerate(zip(images, files, strict=True)):
        where = f"{json_path}: images[{index}]"
        image_id = take_id(image, "id", where)
        further = {key: value for key, value in image.items() if key not in ("id", "file_name")}
        table.add(image_id, root.folder / file, captions[image_id], "train", where, further, root.fence)
    return table
