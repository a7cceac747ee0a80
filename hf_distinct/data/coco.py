"""COCO-style sources: Karpathy's split files (COCO, Flickr8k, Flickr30k) and COCO's own caption files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from hf_distinct.data.caption_files import IMAGE_FOLDERS, load_caption_file
from hf_distinct.data.table import (
    CaptionTable,
    find_image_root,
    read_json,
    refuse_settings,
    take,
    take_captions,
    take_id,
)  # fmt: skip
from hf_distinct.data.texts import find_name
from hf_distinct.files.fence import GIVE_IT, Fence

# "restval": the COCO validation images outside Karpathy's 5,000 + 5,000; everyone trains on them.
KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
ANNOTATIONS = "annotations"


def load_karpathy(
    json_path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Load one of Karpathy's split files (`dataset_coco.json`, `dataset_flickr8k.json`, `dataset_flickr30k.json`).

    Images lie at `image_root/filepath/filename` (`filepath`, "train2014" or "val2014", only COCO's file has), Flickr's
    also in the folder below `image_root` that the published archive unpacks to. The image id is `cocoid` where there
    is one, else `imgid`.

    Args:
        json_path: `{"images": [{"filepath", "filename", "split", "sentences": [{"raw"}], "cocoid", "imgid"}]}`.
        image_root: Folder of the images, or the one that holds the folder that every `filepath` names; the JSON file's
            own folder by default.
        strict: Whether a missing image, an empty or overlong caption or an image without captions is an error.

    Returns:
        Splits train (with `restval`), validation and test; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: There is no such JSON file.
        ValueError: JSON of another shape, an id used twice, or no usable image; (strict) anything skipped.
    """
    return _from_karpathy(read_json(json_path), json_path, image_root, strict)


def load_coco_captions(
    json_path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Load a caption file of COCO (`captions_train2017.json`): one annotation per caption, gathered by image.

    Args:
        json_path: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`.
        image_root: Folder of the images, or the one that holds it (`train2017/` for `captions_train2017.json`). By
            default the file's own folder, or the one above if the file lies in `annotations/`.
        strict: As in `load_karpathy`; an annotation of an unknown image and a repeated annotation count as well.

    Returns:
        One split, "train"; columns `image`, `captions`, `image_id`.

    Raises:
        FileNotFoundError: There is no such JSON file.
        ValueError: JSON of another shape, an id used twice, or no usable image; (strict) anything skipped.
    """
    return _from_coco_captions(read_json(json_path), json_path, image_root, strict)


def find_coco_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Find the caption files of COCO in a folder or in its `annotations/`: `{"train": captions_train2017.json, ...}`.

    Raises:
        ValueError: There are those of two years.
    """
    found: dict[str, Path] = {}
    for split, name in (("train", "train"), ("validation", "val")):
        pattern = f"captions_{name}20[0-9][0-9].json"
        files = [file for place in (Path(folder) / ANNOTATIONS, Path(folder)) for file in sorted(place.glob(pattern))]
        if len(files) > 1:
            raise ValueError(
                f"{str(folder)!r} holds {' and '.join(file.name for file in files)}: give one file instead."
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
        folder: It, or its `annotations/`, holds one or both caption files, of 2014 or 2017.
        image_root: Folder that holds `train2017/` and `val2017/`; `folder` by default.
        strict: As in `load_coco_captions`.

    Returns:
        Splits train and validation, as far as there are files; COCO publishes no captions of its test images.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As `load_coco_captions`, or there are files of both years.
    """
    files = find_coco_files(folder)
    if not files:
        raise FileNotFoundError(f"{str(folder)!r} holds no captions_train2017.json, nor another year's.")
    loaded = {split: load_coco_captions(file, image_root, strict)["train"] for split, file in files.items()}
    return DatasetDict(loaded)


def load_json_captions(
    json_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    strict: bool = False,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> DatasetDict:
    """Load a JSON file of any form: `load_karpathy`, `load_coco_captions` or `load_caption_file`.

    Args:
        json_path: The file.
        image_root: Folder of the images; see the loaders.
        strict: Whether a skip is an error.
        image_column: Key of the image's file, for `load_caption_file`.
        caption_column: Key of the captions, for `load_caption_file`.

    Returns:
        The splits that the file holds.

    Raises:
        FileNotFoundError: There is no such JSON file.
        ValueError: As the loaders, or the file has none of the forms.
    """
    document = read_json(json_path)
    images = document.get("images") if isinstance(document, dict) else None
    sentences = isinstance(images, list) and any(isinstance(each, dict) and "sentences" in each for each in images)
    if not sentences and (images is None or "annotations" not in document):
        named = caption_column or any(isinstance(each, dict) and find_name(each) for each in images or ())
        if images and not named:
            raise ValueError(
                f"{json_path}: the captions are missing: expected 'sentences' in each of the images (Karpathy), a "
                f"list 'annotations' beside them (COCO), or captions in each of a list of images (BLIP). Found the "
                f"keys {sorted(document)}."
            )
        return load_caption_file(json_path, image_root, strict, image_column, caption_column)
    refuse_settings(json_path, "a JSON file", image_column=image_column, caption_column=caption_column)
    load = _from_karpathy if sentences else _from_coco_captions
    return load(document, json_path, image_root, strict)


def _from_karpathy(document: Any, json_path: Any, image_root: Any, strict: bool) -> DatasetDict:
    rows = []
    for index, image in enumerate(take(document, "images", list, str(json_path))):
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
        rows.append((take_id(image, id_key, where), file, captions, KARPATHY_SPLITS[split], where, further))
    root = find_image_root([row[1] for row in rows], json_path, image_root, [Path(json_path).parent], IMAGE_FOLDERS)
    table = CaptionTable(json_path, strict)
    for image_id, file, captions, split, where, further in rows:
        table.add(image_id, root.folder / file, captions, split, where, further, root.fence)
    return table.finish()


def _from_coco_captions(document: Any, json_path: Any, image_root: Any, strict: bool) -> DatasetDict:
    table = CaptionTable(json_path, strict)
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
        if annotation.get("is_rejected") or annotation.get("is_precanned"):  # VizWiz: no caption, or one for all
            table.skips.note("annotation that VizWiz rejected, left out, of image", image_id)
        elif image_id in captions:
            captions[image_id] += texts
        else:
            table.skips.add("annotation of an image that is not listed", image_id)
    files = [take(image, "file_name", str, f"{json_path}: images[{index}]") for index, image in enumerate(images)]
    # captions_train2017.json: its images lie in train2017/.
    own, subfolder = Path(json_path).parent, Path(json_path).stem.partition("_")[2]
    roots = [own, own.parent] if own.name == ANNOTATIONS else [own]
    root = find_image_root(files, json_path, image_root, roots, [subfolder, *IMAGE_FOLDERS])
    for index, (image, file) in enumerate(zip(images, files, strict=True)):
        where = f"{json_path}: images[{index}]"
        image_id = take_id(image, "id", where)
        further = {key: value for key, value in image.items() if key not in ("id", "file_name")}
        table.add(image_id, root.folder / file, captions[image_id], "train", where, further, root.fence)
    return table.finish()
