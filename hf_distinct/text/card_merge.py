"""Model cards that people edit: their text is kept when a card is written again.

A generated card stands between two HTML comments, which are not displayed. The first one holds hashes of the metadata
and of the card, which show whether somebody has edited them.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import yaml

from hf_distinct.text.yaml_files import parse_yaml

MEASURED = ("model-index", "co2_eq_emissions")
"""Metadata that each new card replaces. For all other metadata, a person's edits are kept."""
BESIDE = "model_card.md"
"""File name of a new card if somebody edited the README in a way that cannot be merged."""

_BEGIN = "<!-- Written by hf_distinct, replaced by the next card. Write your own text at the end. "
_END = "<!-- End of what hf_distinct wrote. -->"
_FRONT = re.compile(r"\A---\n(.*?)(?<=\n)---(?:\n|\Z)", re.DOTALL)
_OURS = re.compile(
    rf"(?P<before>.*?){re.escape(_BEGIN)}(?P<hashes>\w+ \w+) -->\n(?P<body>.*)\n{re.escape(_END)}\n?(?P<after>.*)",
    re.DOTALL,
)


def mark(card: str) -> str:
    """Return a new card with the comments around it that `merge` looks for."""
    front, body = _split(card)
    body = body.strip("\n")
    return f"{front}\n{_BEGIN}{_hash(front)} {_hash(body)} -->\n{body}\n{_END}\n"


def merge(new: str, old: str) -> str | None:
    """Replace an old card by a new one and keep what people wrote into the old one.

    Text before and after the generated part is kept. If the metadata were edited, the edits win, except for values
    that are measured again (`MEASURED`).

    Args:
        new: a card from `mark`; people may have edited it since.
        old: the card to replace.

    Returns:
        The merged card; None if somebody edited the generated part, or wrote the whole card.
    """
    new, old = new.replace("\r\n", "\n"), old.replace("\r\n", "\n")
    if new == old:
        return new
    ours, theirs = _read(new), _read(old)
    if ours is None or theirs is None or not theirs.untouched:
        return None
    front = ours.front if theirs.front_untouched else _merged_metadata(ours.front, theirs.front)
    if front is None:
        return None
    before, after = _both(theirs.before, ours.before), _both(theirs.after, ours.after)
    begin = new[new.index(_BEGIN) : new.index(_END)]  # with the hashes unchanged, so that edits stay recognisable
    return f"{front}{before}{begin}{_END}\n{after}"


def edited(card: str) -> bool:
    """Whether a person wrote the card, or changed the generated part of it."""
    found = _read(card.replace("\r\n", "\n"))
    return found is None or not found.untouched


class _Card(NamedTuple):
    front: str
    front_untouched: bool
    before: str
    untouched: bool
    after: str


def _read(card: str) -> _Card | None:
    """Split a card into its parts; None if none was generated. A card with only metadata counts as generated."""
    front, text = _split(card)
    if not text.strip():
        return _Card(front, False, "\n", True, "")
    found = _OURS.fullmatch(text)
    if found is None:
        return None
    of_front, of_body = found["hashes"].split()
    return _Card(front, _hash(front) == of_front, found["before"], _hash(found["body"]) == of_body, found["after"])


def _split(card: str) -> tuple[str, str]:
    """Split off the metadata, including their lines of dashes."""
    front = _FRONT.match(card)
    return (front[0], card[front.end() :]) if front else ("", card)


def _merged_metadata(ours: str, theirs: str) -> str | None:
    try:
        own, kept = (parse_yaml(_FRONT.sub(r"\1", front), "metadata") or {} for front in (ours, theirs))
        merged = own | {name: value for name, value in kept.items() if name not in MEASURED or name not in own}
    except (ValueError, AttributeError, TypeError):  # not YAML, or not a mapping
        return None
    return f"---\n{yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)}---\n"


def _both(theirs: str, ours: str) -> str:
    """Join what people wrote into the two cards, without repeating it."""
    if ours.strip() in theirs:
        return theirs
    return ours if theirs.strip() in ours else f"{theirs.rstrip()}\n\n{ours.lstrip()}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]
