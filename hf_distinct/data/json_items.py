"""Read the list in a large JSON file item by item, so that memory holds a few of them at a time."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hf_distinct.data.table import DECODER, read_json, take, unique_keys
from hf_distinct.data.texts import encoding_of

CHUNK = 1 << 22  # bytes read at a time
MAX_VALUE_BYTES = 1 << 28  # one item, or what stands beside the list
_SPACE = re.compile(r"[ \t\n\r]*")


def first_item(path: Path, key: str) -> Any:
    """Return the first item of `list_items`; None if the list is empty, or the file has another form."""
    try:
        return next(_items(path, key), None)
    except (ValueError, OSError, RecursionError):
        return None


def list_items(path: Path, key: str) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each item of a list, which is in the object of a JSON file under a key.

    The rest of the file is checked when the last item has been read.

    Raises:
        ValueError: it is not such a JSON file; the message names file and position.
    """
    try:
        yield from enumerate(_items(path, key))
    except (ValueError, RecursionError) as error:
        take(read_json(path), key, list, str(path))  # raises an error with the position in the file
        raise ValueError(f"{path}: {error}") from error


def _items(path: Path, key: str) -> Iterator[Any]:
    with path.open("rb") as file:
        text = _Text(file)
        text.expect("{")
        keys: list[tuple[str, None]] = []
        while True:
            keys.append((text.value(), None))
            text.expect(":")
            if keys[-1][0] != key:
                text.value()
            elif text.expect("[") and text.peek() != "]":
                yield text.value()
                while text.expect(",]") == ",":
                    yield text.value()
            else:
                text.expect("]")
            if text.expect(",}") == "}":
                break
        if key not in unique_keys(keys):
            raise ValueError(f"there is no {key!r}")
        if text.peek():
            raise ValueError("there is text after the object")


class _Text:
    """The text of a JSON file, of which a window is in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        encoding, mark = encoding_of(file.read(4))
        file.seek(len(mark))
        self._file, self._decode = file, codecs.getincrementaldecoder(encoding)().decode
        self._window, self._place, self._whole, self._size = "", 0, False, CHUNK

    def peek(self) -> str:
        """Return the next character that is no space; "" at the end."""
        while True:
            space = _SPACE.match(self._window, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._window) or not self._more():
                return self._window[self._place : self._place + 1]

    def expect(self, characters: str) -> str:
        """Return the next character, which has to be one of these."""
        found = self.peek()
        if not found or found not in characters:
            raise ValueError(f"expected one of {characters!r}, found {found!r}")
        self._place += 1
        return found

    def value(self) -> Any:
        """Return the next value."""
        self.peek()
        while True:
            try:
                found, end = DECODER.raw_decode(self._window, self._place)
            except ValueError:
                if not self._more():
                    raise
                continue
            if end < len(self._window) or not self._more():  # a number may go on behind the window
                self._place = end
                return found

    def _more(self) -> bool:
        """Move the window on; return whether there was anything left to read."""
        if self._whole:
            return False
        if self._size > MAX_VALUE_BYTES:
            raise ValueError(f"a value of more than {MAX_VALUE_BYTES} bytes")
        content = self._file.read(self._size)
        self._whole = len(content) < self._size
        self._window = self._window[self._place :] + self._decode(content, self._whole)
        self._size = CHUNK if self._place else 2 * self._size  # for a value that is larger than the window
        self._place = 0
        return True
