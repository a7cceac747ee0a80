"""METEOR and SPICE, which need Java, from the package `pycocoevalcap`.

`pip install pycocoevalcap` includes METEOR; SPICE downloads its language models (400 MB) at first use and needs 8 GB
of memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib import import_module
from subprocess import CalledProcessError
from typing import Any

from hf_distinct.evaluation.ptb_tokenizer import ptb_line


def meteor_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return METEOR of a test set, from 0 to 1, and of each caption (Denkowski and Lavie 2014).

    The value of the test set is not a mean: it is computed from sums over all captions.

    Raises:
        ValueError: Java or `pycocoevalcap` is missing or fails; lists of unequal length.
    """
    found, each = _score("meteor", "Meteor", captions, references)
    return float(found), [float(score) for score in each]


def spice_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Return SPICE of a test set, from 0 to 1, and of each caption (Anderson et al., arXiv 1607.08822).

    Raises:
        ValueError: Java or `pycocoevalcap` is missing or fails; lists of unequal length.
    """
    found, each = _score("spice", "Spice", captions, references)
    return float(found), [float(score["All"]["f"]) for score in each]


def check_java(metric: str) -> None:
    """Raise a ValueError that says what to install, if a metric of this module cannot run."""
    _metric(metric.lower())


def _metric(name: str) -> Any:
    if shutil.which("java") is None:
        raise ValueError(f"{name.upper()} needs Java, and there is no `java` on the PATH: install Java 8 or newer.")
    try:
        return import_module(f"pycocoevalcap.{name}.{name}")
    except ImportError as error:
        raise ValueError(f"{name.upper()} needs `pip install pycocoevalcap`: {error}") from error


def _score(name: str, kind: str, captions: Sequence[str], references: Sequence[Sequence[str]]) -> Any:
    if not captions or len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions and {len(references)} lists of references: pass one for each.")
    module = _metric(name)
    given = {row: [ptb_line(reference) for reference in own] for row, own in enumerate(references)}
    said = {row: [ptb_line(caption)] for row, caption in enumerate(captions)}
    try:
        return getattr(module, kind)().compute_score(given, said)
    except (OSError, CalledProcessError) as error:  # SPICE's models cannot be fetched, Java fails
        raise ValueError(f"{name.upper()} could not run: {error}") from error
