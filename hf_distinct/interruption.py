"""Being asked to stop: SIGTERM of a scheduler, Ctrl-C, or a launcher that is no longer there."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)


class Interruption:
    """Notes, while it is entered, that somebody asks this process to stop, and lets the step at hand be finished.

    A second Ctrl-C stops at once. Not so below torchrun, which passes on the Ctrl-C that its workers have had already;
    it kills them itself if they take more than 30 seconds.

    Outside of the main thread Python allows no signal handlers; there nothing but the launcher is watched.

    Attributes:
        signal: the signal that was received, or 0. A process whose launcher died acts as if it had got SIGTERM: nobody
            else will tell it, and the machine would be held for nothing.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._received = 0
        self._before: dict[signal.Signals, Any] = {}
        self._launcher: int | None = None

    def __enter__(self) -> Interruption:
        """Begin to watch."""
        self._received = 0
        # Set by accelerate launch and by torchrun. Without them the parent may be a shell that is free to go.
        if {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ):
            self._launcher = os.getppid()
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in self.SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back to whoever had them."""
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before, self._launcher = {}, None

    @property
    def signal(self) -> int:
        """The signal that asks to stop; 0 if none does."""
        if not self._received and self._launcher not in (None, os.getppid()):
            return int(signal.SIGTERM)
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self._received = number


def leave(number: int) -> None:
    """End as the signal would have ended the process, now that everything is saved.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: for any other, with the status that a shell gives to it (143 for SIGTERM), so that a scheduler does
            not take the run for finished.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
