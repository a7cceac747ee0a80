"""Requests to stop: SIGTERM or SIGUSR1 from a scheduler, SIGHUP from a lost terminal, Ctrl-C, or a dead launcher."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# Windows has only the first two.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Interruption:
    """Records requests to stop this process, so that the current step can be finished.

    A signal that was ignored before stays ignored: `nohup` ignores SIGHUP, and the run goes on after a logout.

    A second Ctrl-C stops at once. torchrun is the exception: it forwards the Ctrl-C that its workers already received,
    and kills them if they take more than 30 seconds.
    """

    def __init__(self) -> None:
        self._received = 0
        self._launcher: int | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the signals inside this context, and restore the earlier handlers after it.

        Outside of the main thread only the launcher is watched.
        """
        self._received = 0
        # A parent that is not a launcher may be a shell, which may exit.
        self._launcher = os.getppid() if was_launched() else None
        with _handled(self._note, SIGNALS):
            yield

    @property
    def asked(self) -> int:
        """The signal that asks to stop, or 0.

        A process whose launcher has died acts as if it had received SIGTERM, because nobody else would stop it.
        """
        if not self._received and self._launcher not in (None, os.getppid()):
            return int(signal.SIGTERM)
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        self._received = number


class Signalled(SystemExit):
    """Ends the process with the status that a shell gives a signal: 143 for SIGTERM, 129 for SIGHUP.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def ended_from_inside() -> Iterator[None]:
    """Let signals raise `Signalled` inside this context, so that files are closed and child processes end first.

    Ctrl-C raises KeyboardInterrupt as usual. A signal that was ignored before stays ignored. Child processes that
    inherit the handlers exit on SIGTERM, and ignore the other signals.
    """
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Signalled(number)
        if number == signal.SIGTERM:
            os._exit(128 + number)

    with _handled(end, [each for each in SIGNALS if each != signal.SIGINT]):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Handle those of the signals that are not ignored. Only the main thread may set handlers in Python."""
    main = threading.current_thread() is threading.main_thread()
    handled = [each for each in signals if main and signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handler) for each in handled}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, earlier)


def was_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process.

    Both pass settings in the environment. `TrainingArguments` sets some of them too, so only the environment at
    process start counts, which only Linux provides. On other systems a launcher of a single process is not recognised.
    """
    try:
        born_with = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return "TORCHELASTIC_RUN_ID" in os.environ
    return any(each.startswith((b"ACCELERATE_MIXED_PRECISION=", b"TORCHELASTIC_RUN_ID=")) for each in born_with)


def leave(number: int) -> None:
    """End the process as the signal would have, after everything is saved.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: for any other signal, with the status that a shell gives it (143 for SIGTERM), so that a scheduler
            does not treat the run as finished.
    """
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
