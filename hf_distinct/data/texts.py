"""Convert captions from any form (texts, lists, structs, nothing), and decode text files."""

from __future__ import annotations

import ast
import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_distinct.text.limits import MAX_CAPTION_CHARACTERS

if TYPE_CHECKING:
    from hf_distinct.data.skips import Skips

# Limits of a caption list and of the text of one image: a sparse file of 8 GiB takes no space on disk.
MAX_FILE_BYTES = 4 << 30
MAX_TEXT_BYTES = 16 << 20
# Nested lists of captions: a file may nest them thousands deep.
MAX_DEPTH = 8
# Names of captions in published datasets, the likelier ones first.
CAPTION_NAMES = (
    ("captions",),
    (
        "caption", "text", "texts", "sentence", "sentences", "raw", "description", "descriptions", "alt_text",
        "caption_text", "reference_strs",
    ),
    ("alt", "title", "comment", "comments", "caption_str", "caption_raw"),
)  # fmt: skip
# Fields of a struct, in order of preference: `{"raw": ..., "tokens": ..., "sentid": ...}`.
TEXT_FIELDS = ("raw", *(name for names in CAPTION_NAMES for name in names))
# Missing values in tables that were written as text.
NO_TEXTS = {"nan", "none", "null", "<na>", "n/a"}
NO_CAPTION = "image without a caption"
NOT_UTF8 = "caption file that is not UTF-8 (save it as UTF-8)"
_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a text file; raises ValueError with its name if it has more bytes than `limit`, before it is read."""
    if (size := os.path.getsize(path)) > limit:
        raise ValueError(f"{os.fspath(path)}: {size} bytes are over the limit of {limit} for such a file: split it.")
    return Path(path).read_bytes()


def decode_text(content: bytes, where: str) -> str:
    """Decode a text file: UTF-8, or the encoding of its byte order mark, which is removed.

    Raises:
        ValueError: it is neither; the message begins with `where`.
    """
    encoding, mark = encoding_of(content)
    content = content[len(mark) :]
    if not mark and b"\0" in content:
        raise ValueError(f"{where}: this is not UTF-8, but perhaps UTF-16 without its mark. Save the file as UTF-8.")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}: line {line} is not {encoding.upper()} (byte {content[error.start]:#04x} at {error.start}). "
            "Save the file as UTF-8."
        ) from error


def encoding_of(begin: bytes) -> tuple[str, bytes]:
    """Return the encoding of a text file that begins with these bytes, and its byte order mark."""
    return next(((encoding, mark) for mark, encoding in _MARKS if begin.startswith(mark)), ("utf-8", b""))


def caption_lines(content: bytes, where: str) -> list[str]:
    """Return the captions of a text file, one per line, without blank lines; raises ValueError as `decode_text`."""
    return [line.strip() for line in re.split(r"[\r\n]+", decode_text(content, where)) if line.strip()]


def find_name(names: Iterable[str], known: Iterable[tuple[str, ...]] = CAPTION_NAMES) -> str | None:
    """Return the only one of the names that is known; None if there is none, or several of the same rank."""
    names = list(names)
    for rank in known:
        found = [name for name in names if name.strip().lower() in rank]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def split_field(column: str, names: Iterable[str]) -> tuple[str, str | None]:
    """Split `sentences.raw` into a column and a field of its structs, unless a column has this name."""
    name, _, field = column.partition(".")
    return (name, field) if field and column not in (names := set(names)) and name in names else (column, None)


def texts_of(value: Any, field: str | None = None, depth: int = 0) -> list[Any]:
    """Return the captions in a value of a source as a list, not yet cleaned.

    Args:
        value: a text; a list of texts; a struct with a text (`{"raw": ...}`), a list of structs or a struct of lists;
            a list written as text, as in tables; or something that is not a caption, which is returned unchanged.
        field: the field of the struct; by default the first of `TEXT_FIELDS` that exists.
        depth: number of lists and structs that it is nested in.

    Raises:
        ValueError: a struct has no such field, or captions are nested more than `MAX_DEPTH` deep.
    """
    if isinstance(value, str):
        return [value] if value[:1].isalnum() else _written_list(value)
    if depth > MAX_DEPTH:
        raise ValueError(f"captions are nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        name = field or next((each for each in TEXT_FIELDS if each in value), None)
        if name is None or name not in value:
            wanted = f"field {field!r}" if field else "field with a known name"
            raise ValueError(
                f"a caption is an object without a {wanted}; it has the fields {', '.join(map(str, value))}"
            )
        return texts_of(value[name], None, depth + 1)
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in texts_of(each, field, depth + 1)]
    return [value]


def _written_list(text: str) -> list[str]:
    """Read `["a dog", "a cat"]` as two captions, in the syntax of JSON, Python or NumPy (no commas); else as text."""
    stripped = text.strip()
    if not (stripped.startswith("[") and stripped.endswith("]")):
        return [text]
    with_commas = re.sub(r"""(['"])\s+(['"])""", r"\1, \2", stripped)
    for read, written in ((json.loads, stripped), (ast.literal_eval, with_commas)):
        try:
            found = read(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return [text]


def clean_captions(captions: Any, image_id: str, skips: Skips, field: str | None = None) -> list[str]:
    """Return the usable captions, stripped.

    Args:
        captions: captions of one image, as `texts_of` accepts them.
        image_id: its id, for messages.
        skips: records the others: those that `clean_texts` skips, and the image itself if none is left.
        field: the field, if a caption is a struct.

    Raises:
        ValueError: a caption is a struct without this field.
    """
    try:
        texts = texts_of(captions, field)
    except ValueError as error:
        raise ValueError(f"{skips.source}: image {image_id!r}: {error}. Set --caption_column COLUMN.FIELD?") from error
    cleaned = clean_texts(texts, image_id, skips)
    if not cleaned:
        skips.add(NO_CAPTION, image_id)
    return cleaned


def clean_texts(texts: Iterable[Any], image_id: str, skips: Skips) -> list[str]:
    """Return the usable captions of a list, stripped.

    Args:
        texts: captions of one image.
        image_id: its id, for messages.
        skips: records the others: empty ones (null, NaN, and these words as text, too), values that are not text,
            those over `MAX_CAPTION_CHARACTERS`, and those that cannot be stored.
    """
    cleaned = []
    for caption in texts:
        if isinstance(caption, str) and _is_plain(caption):
            cleaned.append(caption)
        elif is_missing(caption) or (isinstance(caption, str) and is_empty(caption)):
            skips.add("empty caption of image", image_id)
        elif not isinstance(caption, str):
            skips.add(f"caption that is not text ({type(caption).__name__}) of image", image_id)
        elif len(caption.strip()) > MAX_CAPTION_CHARACTERS:
            skips.add(f"caption over {MAX_CAPTION_CHARACTERS} characters of image", image_id)
        elif not is_storable(caption):
            skips.add("caption with a broken character (lone surrogate) of image", image_id)
        else:
            cleaned.append(caption.strip())
    return cleaned


def _is_plain(text: str) -> bool:
    """Whether a caption is usable as it is, by a quick test that most usable ones pass: two words of ASCII or more."""
    return (
        text.isascii()
        and text.isprintable()
        and " " in text
        and text[0].isalnum()
        and text[-1] != " "
        and text[-2] not in " ."
        and len(text) <= MAX_CAPTION_CHARACTERS
    )


def is_missing(value: Any) -> bool:
    """Whether a value is null or NaN (the only value that differs from itself)."""
    return value is None or value != value


def is_empty(text: str) -> bool:
    """Whether a text is empty: blank, a word for a missing value, or a full stop, which is removed for CLIP."""
    plain = text.replace("\ufeff", "").strip().rstrip(".").strip()
    return not plain or plain.lower() in NO_TEXTS


def is_storable(text: str) -> bool:
    """Whether a UTF-8 column can store a text: JSON may contain half of a surrogate pair, such as U+D83D."""
    return text.isascii() or _SURROGATE.search(text) is None
