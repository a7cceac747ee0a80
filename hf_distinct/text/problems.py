"""All problems in one error: each ``..._problems`` yields sentences, and `refuse` raises them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

Made = TypeVar("Made")


def refuse(*problems: Iterable[str]) -> None:
    """Raise a ValueError with all problems, if there are any: one as it is, several as a list."""
    found = list(chain(*problems))
    if len(found) == 1:
        raise ValueError(found[0])
    if found:
        raise ValueError("\n- ".join([f"{len(found)} things do not fit together:", *found]))


def attempt(problems: list[str], make: Callable[..., Made], *args: Any) -> Made | None:
    """What a function makes of its arguments; if it raises ValueError, None, and the message joins the problems."""
    try:
        return make(*args)
    except ValueError as error:
        problems.append(str(error))
        return None


def one_line(error: BaseException, length: int = 500) -> str:
    """The message of an error without line breaks, cut where it lists hundreds of weights."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= length else message[:length] + " ..."
