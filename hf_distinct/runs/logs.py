"""The log lines of a recipe on the screen, without those of the libraries below it."""

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
    """Show the log lines of hf_distinct from ``INFO`` on, and only warnings of other libraries.

    Call it once, at the start of a recipe.

    Args:
        names: further loggers to show from ``INFO`` on, such as the recipe's own.
        main_process: whether this is the main process; the others show only errors and unreadable pictures.
    """
    screen = logging.StreamHandler()
    screen.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(handlers=[screen])
    for handler in logging.getLogger("transformers").handlers:  # it has one of its own
        handler.setFormatter(PlainFormatter(getattr(handler.formatter, "_fmt", None)))
    for name in ("hf_distinct", *names):
        logging.getLogger(name).setLevel(logging.INFO if main_process else logging.ERROR)
    for reader in ("data.collator", "inference.captioning"):  # each process has pictures of its own
        logging.getLogger(f"hf_distinct.{reader}").setLevel(logging.WARNING)
    # DeepSpeed sets the level of its logger when it is imported, and then warns that a machine without GPU has none.
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    warnings.filterwarnings("ignore", "Reshape_last_stage is set to False", FutureWarning)  # the shipped captioner's


def _is_news(record: logging.LogRecord) -> bool:
    return record.module != "real_accelerator"


@contextmanager
def lasting_output() -> Iterator[None]:
    """Keep output from ending the work: inside, stdout and stderr accept all characters and never raise.

    A character that the terminal cannot show is written as its escape sequence. Once a stream cannot be written,
    because its reader has ended (``recipe | head``, a lost terminal) or the disk is full, it is silent. Replacements
    of this process's own streams stay as they are.
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
    """The file of stdout or stderr until it cannot be written; then it discards everything."""

    def write(self, data: Any, /) -> int:
        """Write as a file does; discard what cannot be written, and everything after it."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for processes that inherit it, too
            os.close(nowhere)
            if self.fileno() == 1 and not isinstance(error, BrokenPipeError) and sys.stderr is not None:
                print(f"stdout cannot be written, so the rest is not shown: {error}", file=sys.stderr)  # noqa: T201
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
