"""METEOR and SPICE, which exist in Java alone: through the package `pycocoevalcap`, where both are installed.

`pip install pycocoevalcap` brings METEOR; SPICE downloads its language models (400 MB) at first use, and takes
8 GB of memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from subprocess import CalledProcessError
from typing import Any

from hf_distinct.evaluation.ptb_tokenizer import ptb_line


def meteor_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return METEOR of a test set, from 0 to 1, and that of each caption (Denkowski and Lavie 2014).

    The test set's is no mean: it is counted on sums over all captions.

    Raises:
        ValueError: Java or `pycocoevalcap` is missing or fails; lists of unequal length.
    """
    found, each = _score("meteor", "Meteor", captions, references)
    return float(found), [float(score) for score in each]


def spice_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return SPICE of a test set, from 0 to 1, and that of each caption (Anderson et al., arXiv 1607.08822).

    Raises:
        ValueError: Java or `pycocoevalcap` is missing or fails; lists of unequal length.
    """
    found, each = _score("spice", "Spice", captions, references)
    return float(found), [float(score["All"]["f"]) for score in each]


def check_java(metric: str) -> None:
    """Raise a ValueError that says what to install, where a metric of this file cannot run."""
    _metric(metric.lower())


def _metric(name: str) -> Any:
    if shutil.which("java") is None:
        raise ValueError(f"{name.upper()} runs in Java, and there is no `java` on the PATH: install Java 8 or newer.")
    try:
        return import_module(f"pycocoevalcap.{name}.{name}")
    except ImportError as error:
        raise ValueError(f"{name.upper()} needs `pip install pycocoevalcap`: {error}") from error


def _score(name: str, kind: str, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
    if not captions or len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions and {len(references)} lists of references: give one for each.")
    module = _metric(name)
    given = {row: [ptb_line(reference) for reference in own] for row, own in enumerate(references)}
    said = {row: [ptb_line(caption)] for row, caption in enumerate(captions)}
    try:
        return getattr(module, kind)().compute_score(given, said)
    except (OSError, CalledProcessError) as error:  # SPICE's models cannot be fetched, Java fails
        raise ValueError(f"{name.upper()} could not run: {error}") from error
