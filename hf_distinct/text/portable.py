"""Text that may leave the machine: what is only true, or only known, here is taken out of it."""

from __future__ import annotations

import json
import ntpath
import os
import re
from pathlib import Path
from typing import Any

# A token of the Hub is one long word of letters and digits; names such as `user/hf_captioner_v2` are none. The longer
# word is one wherever it begins.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}|(?:hf|api_org)_[A-Za-z0-9]{30,}"
    r"|gh[a-z]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|(?<![A-Z0-9])A[KS]IA[A-Z0-9]{12,}"
)
_SECRET = re.compile(
    r"((?:token|passw(?:or)?d|secret|\bsig|signature|(?:access|account|api|secret)[_-]?key)=|authorization:\s*\w+\s+)"
    r"[^\s&;,'\"]+",
    re.IGNORECASE,
)
# An address to its end; or an absolute path, `~/path` or `../path` inside a text, not the slashes of `org/name`,
# `and/or`. Folders may hold spaces, and are told from prose by the slash behind them.
_ADDRESS_OR_PATH = re.compile(
    r"\b(?P<scheme>[A-Za-z][\w+.-]*)://(?P<rest>[^\s\"<>]*)"
    r"|(?<![\w./\\])(?:[A-Za-z]:|~[\w.-]*|\.\.)?[\\/]?"
    r"(?:[\\/][^\\/:'\",;\n]+(?=[\\/]))*[\\/][^\s\\/'\",;]+[\\/]?"
)
_LOCAL = ("file", "local-dir")
_HOME = re.compile(r"(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^\\/]+")
_USER = re.compile(r"\A[^/@:]*:(?!\d*(?:/|$)).*@")  # a password may hold what it should not; a port is a number

JSON_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer_config.json", "special_tokens_map.json", "open_clip_config.json", "text_config.json", "metrics.json",
)  # fmt: skip
"""Files whose settings libraries write, with paths of the machine among them."""
_PLACE = re.compile(r"(?:name_or_path|_path|_file|_dir|_folder)$|^(?:path|hf_model_name|hf_tokenizer_name)$")
_WORDS = ("added_tokens_decoder", "chat_template")  # of a tokenizer, in which a slash is no path


def portable(text: str) -> str:
    """The text without what is private in it.

    Of a path the last part stays, of an address all but user, password and what follows `?` or `#`. Tokens are left
    out.

    Example:
        >>> portable("local-dir:/home/me/models/clip with hf_abcdefghijklmnop")
        'local-dir:clip with [token]'
        >>> portable("https://me:secret@host/a.tar?sig=0123")
        'https://host/a.tar'
    """
    whole = text.removeprefix("file://")
    if os.path.isabs(whole):  # whatever its folders are called
        text = _last_part(whole)
    text = _ADDRESS_OR_PATH.sub(_public_part, text)
    return _SECRET.sub(r"\1[secret]", _TOKEN.sub("[token]", text))


def portable_values(found: Any) -> Any:
    """JSON whose texts and names are `portable`."""
    if isinstance(found, dict):
        return {portable(name): portable_values(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [portable_values(value) for value in found]
    return portable(found) if isinstance(found, str) else found


def portable_file(path: Path) -> bytes | None:
    """The content of a file as it may leave the machine; None: as it is.

    Args:
        path: any file; those of `JSON_FILES` are read.
    """
    if path.name not in JSON_FILES:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON; whoever loads it next says what is wrong with it
        return None
    public = _settings(found)
    return None if public == found else (json.dumps(public, indent=2) + "\n").encode()


def _settings(found: Any, name: str = "") -> Any:
    """Settings of a model whose texts name no place of this machine; names of models on the Hub stay."""
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
    if path == str(Path.home()) or _HOME.fullmatch(path):  # its last part is somebody's name
        return "~"
    return ntpath.basename(path) or "/"  # ntpath knows both kinds of slash
