"""Further columns of a source, which rewards can read in addition to the captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Features, Value
from transformers.utils import logging

from hf_distinct.data.texts import is_storable

logger = logging.get_logger(__name__)

# Columns with a special meaning here, and arguments that every reward gets.
TAKEN = {"image", "captions", "image_id", "row", "neighbours", "references", "completions", "prompts"}
_WHOLE = re.compile(r"[+-]?(0|[1-9]\d{0,17})")


def add_kinds(kinds: dict[str, set[str]], records: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Add the kinds of values in records, by name, and return all."""
    for record in records:
        for name, value in record.items():
            kinds.setdefault(name, set()).add(_kind(value))
    return kinds


def further_features(kinds: Mapping[str, set[str]], source: str) -> Features:
    """Return the columns that records have in common: texts, numbers or booleans; missing values are None.

    Others are ignored with a warning that names them: lists and objects, mixed types, names with a special meaning
    (`TAKEN`), and names that Arrow cannot store.

    Args:
        kinds: from `add_kinds`.
        source: what the records are from, for messages.
    """
    features = usable_columns(kinds)
    empty = {name for name, found in kinds.items() if found <= {""}}
    tell_further(source, features, sorted(kinds.keys() - features.keys() - empty))
    return features


def usable_columns(kinds: Mapping[str, set[str]]) -> Features:
    """Return the same as `further_features`, and log nothing."""
    usable = {name: found for name, found in kinds.items() if name not in TAKEN and _is_name(name)}
    return Features({name: Value(dtype) for name, found in usable.items() if (dtype := _dtype(found))})


def fitting(value: Any, dtype: str) -> Any:
    """Return a value converted to a column's type, or None if it does not fit."""
    kind = _kind(value)
    return float(value) if (kind, dtype) == ("int64", "float64") else value if kind == dtype else None


def tell_further(source: str, kept: Iterable[str], ignored: Sequence[str]) -> None:
    """Log which columns rewards can read, and warn about ignored ones."""
    if listed := ", ".join(kept):
        logger.info(f"{source}: further columns for rewards: {listed}")
    if ignored:
        logger.warning(
            f"{source}: ignored {', '.join(map(repr, ignored))}: a further column should contain texts, numbers or "
            f"booleans, of one type in all rows, and not be named {', '.join(sorted(TAKEN))}."
        )


def tell_differing(source: str, names: Iterable[str]) -> None:
    """Warn about columns that are ignored because they differ among merged rows of one image."""
    if names := ", ".join(map(repr, names)):
        logger.warning(
            f"{source}: ignored {names}, which differs among the rows of one image."
        )


def is_further(name: str, feature: Any) -> bool:
    """Whether rewards can read a column of a `datasets` dataset."""
    if name in TAKEN or not isinstance(feature, (Value, ClassLabel)):
        return False
    return feature.dtype.startswith(("string", "large_string", "int", "uint", "float", "bool"))


def parse_numbers(records: list[dict[str, Any]], keep: set[str]) -> None:
    """Convert columns of a text table that contain only numbers to numbers, in place; empty cells become None.

    Args:
        records: the rows.
        keep: columns that stay text.
    """
    names = {name for record in records for name in record} - keep
    for name in names:
        texts = [text for record in records if (text := record.get(name))]
        kind = int if all(map(_WHOLE.fullmatch, texts)) else _float_or_none if _are_floats(texts) else None
        for record in records:
            if name in record:
                record[name] = None if not record[name] else kind(record[name]) if kind else record[name]


def _is_name(name: str) -> bool:
    """Whether Arrow can store a column under a name, which it cuts at a zero byte."""
    return bool(name) and "\0" not in name and is_storable(name)


def _are_floats(texts: list[str]) -> bool:
    # Codes such as 007 stay text.
    return all(_float_or_none(text) is not None and not re.match(r"[+-]?0\d", text) for text in texts)


def _float_or_none(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _kind(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int64" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float):
        return "float64"
    return "string" if isinstance(value, str) and is_storable(value) else "other"


def _dtype(kinds: set[str]) -> str | None:
    kinds = kinds - {""}
    if kinds == {"int64", "float64"}:
        return "float64"
    return kinds.pop() if len(kinds) == 1 and "other" not in kinds else None
