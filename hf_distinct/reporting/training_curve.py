"""Plot the training curve of a model card from the Trainer's log."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Panels by title, with the names and labels of their series.
PANELS = {
    "reward": {"reward/total/rollouts": "the captioner's captions", "reward/total/references": "people's captions"},
    "R@1 in evaluations": {"eval_scorer/t2i_R@1": "under the scorer", "eval_judge/t2i_R@1": "under the judge"},
    "loss": {"loss": "training", "eval_loss": "evaluation"},
}
STYLES = ({"color": "#00508f", "linestyle": "-"}, {"color": "#b03a00", "linestyle": "--"})  # also without colour


def write_training_curve(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> bool:
    """Plot reward, retrieval and loss by step as a PNG, as far as they were logged.

    Args:
        log_history: the Trainer's log, as in `trainer_state.json`: every entry has its `step`.
        path: the PNG file to write; its folder is created if needed.

    Returns:
        Whether a plot was written; this needs a series of at least two points.
    """
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    found = {
        title: {label: points for name, label in series.items() if len(points := _points(log_history, name)) > 1}
        for title, series in PANELS.items()
    }
    shown = {title: series for title, series in found.items() if series}
    if not shown:
        return False
    figure = Figure(figsize=(5.5 * len(shown), 3.2), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        for (label, points), style in zip(series.items(), STYLES, strict=False):
            axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
    return True


def _points(log_history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Return the steps and values that are finite numbers; the log may be an untrusted file."""
    found: list[tuple[Any, Any]] = [(line.get("step"), line.get(name)) for line in log_history]
    return [(step, value) for step, value in found if _is_number(step) and _is_number(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
