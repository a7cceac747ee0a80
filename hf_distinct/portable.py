"""Text that may leave the machine: what is only true, or only known, here is taken out of it."""

from __future__ import annotations

import ntpath
import os
import re

# A token of the Hub is one long word of letters and digits; names such as `user/hf_captioner_v2` are none.
_TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}")
# An absolute path, `~/path` or `../path` inside a text; not the slashes of `https://host/page`, `org/name`, `and/or`.
# Folders may hold spaces, and are told from prose by the slash behind them.
_PATH = re.compile(r"(?<![\w./\\])(?:[A-Za-z]:|~\w*|\.\.)?(?:[\\/][^\\/:'\",;\n]+(?=[\\/]))*[\\/][^\s\\/'\",;]+[\\/]?")


def portable(text: str) -> str:
    """The text without the local part of its paths, of which the last part stays, and without tokens of the Hub.

    Example:
        >>> portable("local-dir:/home/me/models/clip with hf_abcdefgh1")
        'local-dir:clip with [token]'
    """
    text = text.removeprefix("file://")
    if os.path.isabs(text):  # as a whole, whatever its folders are called
        return _last_part(text)
    return _TOKEN.sub("[token]", _PATH.sub(lambda found: _last_part(found.group()), text))


def _last_part(path: str) -> str:
    return ntpath.basename(path.rstrip("\\/")) or "/"  # ntpath knows both kinds of slash
