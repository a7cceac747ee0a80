"""Report all problems in one error: each ``..._problems`` function yields sentences, and `refuse` raises them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

Made = TypeVar("Made")


def refuse(*problems: Iterable[str]) -> None:
    """Raise a ValueError with all problems, if there are any; several are formatted as a list."""
    found = list(chain(*problems))
    if len(found) == 1:
        raise ValueError(found[0])
    if found:
        raise ValueError("\n- ".join([f"{len(found)} problems:", *found]))


def attempt(problems: list[str], make: Callable[..., Made], *args: Any) -> Made | None:
    """Call a function; if it raises ValueError, add the message to the problems and return None."""
    try:
        return make(*args)
    except ValueError as error:
        problems.append(str(error))
        return None


def one_line(error: BaseException, length: int = 500) -> str:
    """Return an error's message without line breaks, shortened if it is longer than ``length`` characters."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= length else message[:length] + " ..."
