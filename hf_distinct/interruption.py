"""Being asked to stop: SIGTERM of a scheduler, Ctrl-C, or a launcher that is no longer there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Notes that somebody asks this process to stop, so that the step at hand can be finished.

    A second Ctrl-C stops at once. Not so below torchrun, which passes on the Ctrl-C that its workers have had already;
    it kills them itself if they take more than 30 seconds.
    """

    def __init__(self) -> None:
        self._received = 0
        self._launcher: int | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, the signals are noted; behind, whoever had them has them again.

        Outside of the main thread Python allows no signal handlers; there nothing but the launcher is watched.
        """
        self._received = 0
        # Set by accelerate launch and by torchrun. Without them the parent may be a shell that is free to go.
        launched = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & set(os.environ)
        self._launcher = os.getppid() if launched else None
        main = threading.current_thread() is threading.main_thread()
        before = {each: signal.signal(each, self._note) for each in SIGNALS} if main else {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @property
    def asked(self) -> int:
        """The signal that asks to stop; 0 if none does.

        A process whose launcher died acts as if it had got SIGTERM: nobody else will tell it, and the machine would be
        held for nothing.
        """
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
