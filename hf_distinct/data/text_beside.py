"""A folder of images with a text file for each, as used for fine-tuning image generators."""

from __future__ import annotations

import os
from pathlib import Path

from datasets import DatasetDict

from hf_distinct.data.caption_table import CaptionTable
from hf_distinct.data.images import picture_files
from hf_distinct.data.table import split_named
from hf_distinct.data.texts import MAX_TEXT_BYTES, NOT_UTF8, caption_lines, read_bytes, texts_of
from hf_distinct.files.fence import Fence

TEXT_ENDINGS = (".txt", ".caption", ".captions")


def load_text_beside(folder: str | os.PathLike[str], strict: bool = False) -> DatasetDict:
    """Load images with a text file for each: `dogs/rex.jpg` and `dogs/rex.txt`, one caption per line.

    Args:
        folder: the folder of the images, at any depth. The text file of an image has the extension .txt, .caption or
            .captions, instead of the image's extension or after it. Folders `train/`, `validation/` (or `val/`) and
            `test/` are splits.
        strict: raise an error for an image without a text file, a text file that is not UTF-8, or an empty or
            overlong caption.

    Returns:
        Splits among train, validation and test; columns `image`, `captions`, `image_id` (path within the folder).

    Raises:
        ValueError: there are no images, none is usable, or a link leads out of the folder; (strict) anything is
            skipped.
    """
    table, used = CaptionTable(folder, strict), set()
    fence = Fence([folder], "copy it into this folder")
    for picture in picture_files(folder):
        image_id = picture.relative_to(folder).as_posix()
        if (text_file := text_file_of(picture)) is None:
            table.skips.add("image without a text file", image_id)
            continue
        used.add(text_file)
        fence.check(text_file, str(folder))
        content = read_bytes(text_file, MAX_TEXT_BYTES)
        try:
            captions = texts_of(caption_lines(content, str(text_file)))
        except ValueError:
            table.skips.add(NOT_UTF8, str(text_file.relative_to(folder)))
            continue
        split = split_named(Path(image_id).parts[0]) if "/" in image_id else None
        table.add(image_id, picture, captions, split or "train", str(text_file), None, fence)
    for ending in TEXT_ENDINGS:
        for text_file in sorted(Path(folder).rglob(f"*{ending}")):
            if text_file not in used:
                table.skips.note("text file without an image", str(text_file.relative_to(folder)))
    return table.finish()


def holds_texts(folder: Path) -> bool:
    """Whether any image in a folder or its subfolders has a text file."""
    try:
        return any(text_file_of(picture) for picture in picture_files(folder))
    except ValueError:
        return False


def text_file_of(picture: Path) -> Path | None:
    """Return the text file of an image: `rex.txt`, or `rex.jpg.txt`, for `rex.jpg`."""
    names = [Path(f"{stem}{ending}") for ending in TEXT_ENDINGS for stem in (picture.with_suffix(""), picture)]
    return next((each for each in names if each.is_file()), None)
