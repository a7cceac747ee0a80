"""Record what a data source skips: counted, named, and reported in one warning."""

from __future__ import annotations

from transformers.utils import logging

logger = logging.get_logger(__name__)

NAMES_SHOWN = 5


class Skips:
    """Collects what is skipped, by reason, so that everything is reported, but in a single warning.

    Args:
        source: what is being read, as messages name it (a file, a dataset).
        strict: raise an error at the first skip.
    """

    def __init__(self, source: str, strict: bool = False) -> None:
        self.source = source
        self.strict = strict
        self.names: dict[str, list[str]] = {}
        self.notes: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count something that is skipped.

        Args:
            reason: the reason as a short noun phrase ("missing image file"); skips are counted by reason.
            name: its name (an image id, a path).

        Raises:
            ValueError: in strict mode.
        """
        if self.strict:
            raise ValueError(f"{self.source}: {reason}: {name!r}. Fix it, or load with strict=False to skip it.")
        self.names.setdefault(reason, []).append(name)

    def note(self, reason: str, name: str) -> None:
        """Count something to report that is not skipped; it is no error in strict mode either."""
        self.notes.setdefault(reason, []).append(name)

    def summary(self) -> str:
        """Return e.g. `2 x missing image file ('a.png', 'b.png'); 1 x empty caption ('17')`, or "" when none."""
        return _summary(self.names)

    def warn(self) -> None:
        """Log one warning with every count and the first names, if anything was skipped, and one of the notes."""
        if self.names:
            logger.warning(f"{self.source}: skipped {self.summary()}")
        if self.notes:
            logger.warning(f"{self.source}: found {_summary(self.notes)}")


def _summary(counted: dict[str, list[str]]) -> str:
    parts = []
    for reason, names in counted.items():
        shown = ", ".join(repr(name) for name in names[:NAMES_SHOWN])
        more = ", ..." if len(names) > NAMES_SHOWN else ""
        parts.append(f"{len(names)} x {reason} ({shown}{more})")
    return "; ".join(parts)
