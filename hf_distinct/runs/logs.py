"""What a recipe shows on the screen: its own words, without the chatter of the libraries below it."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hf_distinct.text.escaping import PlainFormatter


def show_logs(*names: str, main_process: bool = True) -> None:
    """Show what hf_distinct reports from ``INFO`` on, and of all other libraries only their warnings.

    Call it once, at the entry of a recipe.

    Args:
        names: further loggers to show from ``INFO`` on, such as the recipe's own.
        main_process: whether this is the main process; the others show only errors, and pictures that go bad.
    """
    screen = logging.StreamHandler()
    screen.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(handlers=[screen])
    for handler in logging.getLogger("transformers").handlers:  # it has one of its own
        handler.setFormatter(PlainFormatter(getattr(handler.formatter, "_fmt", None)))
    for name in ("hf_distinct", *names):
        logging.getLogger(name).setLevel(logging.INFO if main_process else logging.ERROR)
    logging.getLogger("hf_distinct.data.collator").setLevel(logging.WARNING)  # each process has pictures of its own
    # DeepSpeed sets the level of its logger when it is imported, and then warns that a machine without GPU has none.
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    warnings.filterwarnings("ignore", "Reshape_last_stage is set to False", FutureWarning)  # the shipped captioner's


def _is_news(record: logging.LogRecord) -> bool:
    return record.module != "real_accelerator"


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let no word on the screen end the work: inside, stdout and stderr take all characters, and outlive their reader.

    A character that a terminal does not know is written as its escape sequence. Where nobody reads any more
    (``recipe | head``, a lost terminal) or the disk is full that they are written to, they are silent from then on.
    Streams that somebody has put in the place of this process's own stay as they are.
    """
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream not in before:
                stream.flush()
        sys.stdout, sys.stderr = before


class _Lasting(io.FileIO):
    """The stream of stdout or stderr, as long as somebody takes what is written; then nothing."""

    def write(self, data: Any, /) -> int:
        """As a file's; what cannot be written goes nowhere, and so does all that follows."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for processes that inherit it, too
            os.close(nowhere)
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError) and sys.stderr is not None:
                print(f"what follows is not shown: stdout cannot be written: {error}", file=sys.stderr)  # noqa: T201
            return len(memoryview(data).cast("B"))


def _lasting(stream: Any) -> Any:
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, as without a console on Windows
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "w", closefd=False)), encoding=stream.encoding, errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,  # unbuffered: line by line
    )  # fmt: skip
