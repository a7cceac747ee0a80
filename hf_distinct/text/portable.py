"""Remove paths, tokens and passwords from text that may leave the machine."""

from __future__ import annotations

import json
import ntpath
import os
import re
from pathlib import Path
from typing import Any

# A Hub token is one long word of letters and digits; a name such as `user/hf_captioner_v2` is not. The longer form
# is recognised within a word, too.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}|(?:hf|api_org)_[A-Za-z0-9]{30,}"
    r"|gh[a-z]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|(?<![A-Z0-9])A[KS]IA[A-Z0-9]{12,}"
)
_SECRET = re.compile(
    r"((?:token|passw(?:or)?d|secret|\bsig|signature|(?:access|account|api|secret)[_-]?key)=|authorization:\s*\w+\s+)"
    r"[^\s&;,'\"]+",
    re.IGNORECASE,
)
# A URL; or an absolute path, `~/path` or `../path` within a text, but not the slashes of `org/name` and `and/or`.
# Folder names may contain spaces; the slash after them distinguishes them from prose.
_ADDRESS_OR_PATH = re.compile(
    r"\b(?P<scheme>[A-Za-z][\w+.-]*)://(?P<rest>[^\s\"<>]*)"
    r"|(?<![\w./\\])(?:[A-Za-z]:|~[\w.-]*|\.\.)?[\\/]?"
    r"(?:[\\/][^\\/:'\",;\n]+(?=[\\/]))*[\\/][^\s\\/'\",;]+[\\/]?"
)
_LOCAL = ("file", "local-dir")
_HOME = re.compile(r"(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^\\/]+")
_USER = re.compile(r"\A[^/@:]*:(?!\d*(?:/|$)).*@")  # a password may contain special characters; a number is a port

JSON_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "special_tokens_map.json", "open_clip_config.json", "text_config.json", "metrics.json",
)  # fmt: skip
"""Files with settings written by libraries, which may contain local paths."""
_PLACE = re.compile(r"(?:name_or_path|_path|_file|_dir|_folder)$|^(?:path|hf_model_name|hf_tokenizer_name)$")
_WORDS = ("added_tokens_decoder", "chat_template")  # in a tokenizer's files; a slash in them is not a path


def portable(text: str) -> str:
    """Return the text without private parts.

    A path is reduced to its last part. A URL loses user, password, query and fragment. Tokens are replaced.

    Example:
        >>> portable("local-dir:/home/me/models/clip with hf_abcdefghijklmnop")
        'local-dir:clip with [token]'
        >>> portable("https://me:secret@host/a.tar?sig=0123")
        'https://host/a.tar'
    """
    whole = text.removeprefix("file://")
    if os.path.isabs(whole):  # even if its folders contain unusual characters
        text = _last_part(whole)
    text = _ADDRESS_OR_PATH.sub(_public_part, text)
    return _SECRET.sub(r"\1[secret]", _TOKEN.sub("[token]", text))


def portable_values(found: Any) -> Any:
    """Apply `portable` to all strings and keys of a JSON value."""
    if isinstance(found, dict):
        return {portable(name): portable_values(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [portable_values(value) for value in found]
    return portable(found) if isinstance(found, str) else found


def portable_file(path: Path) -> bytes | None:
    """Return the content of a file without private parts, or None if the file can be published unchanged.

    Args:
        path: any file; only those in `JSON_FILES` are read.
    """
    if path.name not in JSON_FILES:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # not JSON; loading it later reports the error
        return None
    public = _settings(found)
    return None if public == found else (json.dumps(public, indent=2) + "\n").encode()


def _settings(found: Any, name: str = "") -> Any:
    """Remove local paths from a model's settings; names of models on the Hub are kept."""
    if isinstance(found, dict):
        return {key: value if key in _WORDS else _settings(value, key) for key, value in found.items()}
    if isinstance(found, list):
        return [_settings(value, name) for value in found]
    if not isinstance(found, str):
        return found
    if _PLACE.search(name) and (os.path.exists(found) or found.count("/") > 1 or "\\" in found):
        return _last_part(portable(found))
    is_path = re.match(r"(?:[A-Za-z]:|~[\w.-]*|\.\.)?[\\/].*[\\/]", found) is not None
    return portable(found) if is_path or "://" in found or _TOKEN.search(found) else found


def _public_part(found: re.Match[str]) -> str:
    if found["scheme"] is None or found["scheme"].lower() in _LOCAL:
        return _last_part(found["rest"] or found.group())
    rest = re.split(r"[?#]", _USER.sub("", found["rest"], count=1), maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{found['scheme']}://{host.rpartition('@')[2]}{slash}{path}"


def _last_part(path: str) -> str:
    path = path.rstrip("\\/")
    if path == str(Path.home()) or _HOME.fullmatch(path):  # the last part is a user name
        return "~"
    return ntpath.basename(path) or "/"  # ntpath knows both kinds of slash
