"""Plot systems on frontiers: retrieval against agreement with people, grammar and truth."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_distinct.evaluation.frontier import Point, frontier
from hf_distinct.text.escaping import plain

Kind = Literal["trained", "ours", "guidance", "best of n", "landmark"]

# Markers distinguish the kinds; colour only repeats them.
MARKS: dict[Kind, dict[str, Any]] = {
    "ours": {"marker": "*", "markersize": 11, "color": "#00508f", "label": "ours"},
    "trained": {"marker": "o", "markersize": 6, "color": "#b03a00", "label": "other rewards"},
    "guidance": {
        "marker": "s",
        "markersize": 5,
        "color": "#444444",
        "mfc": "white",
        "label": "guided decoding",
    },
    "best of n": {"marker": "^", "markersize": 6, "color": "#444444", "mfc": "white", "label": "best of n samples"},
    "landmark": {"marker": "P", "markersize": 8, "color": "#111111", "mfc": "white", "label": "for orientation"},
}
Y = "judge/t2i_R@1"
XS = {"CIDEr-D": "CIDEr-D", "well_formed": "well-formed", "true": "true"}
LEAST = {"CIDEr-D": 0.6, "well_formed": 0.85, "true": 0.85}
"""Where an axis begins, as a fraction of the best mean on it. Lower values are drawn at the edge with their value,
because otherwise the rest would be crowded together."""
GALLERIES = {"": "gallery drawn at random", "twins/": "gallery of near twins"}


@dataclass(frozen=True)
class System:
    """A system and its metrics.

    Args:
        name: its name in the plot.
        figures: the values of each metric, one per seed.
        kind: how it is drawn.
    """

    name: str
    figures: Mapping[str, Sequence[float]]
    kind: Kind = "trained"

    def mean(self, figure: str) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.figures[figure])

    def spread(self, figure: str) -> float:
        """Return the standard deviation over the seeds; 0 for a single one."""
        values = self.figures[figure]
        return statistics.stdev(values) if len(values) > 1 else 0.0


def write_frontier_plot(systems: Sequence[System], path: str | os.PathLike[str], title: str = "") -> None:
    """Plot one panel for each gallery and each metric that is traded off against retrieval.

    Systems are numbered, with a list of names next to the panels. Error bars are standard deviations over seeds. The
    line is the frontier of all systems except ours and the landmarks, mixtures of them included.

    Args:
        systems: the systems, in the order of their numbers; missing metrics are left out.
        path: the file to write; its extension (``.png``, ``.svg``, ``.pdf``) determines the format.
        title: a heading.

    Raises:
        ValueError: no system has both the judge's retrieval and one of the other metrics.
    """
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    known = {name for system in systems for name in system.figures}
    galleries = [prefix for prefix in GALLERIES if prefix + Y in known]
    xs = [x for x in XS if x in known]
    if not galleries or not xs:
        raise ValueError(f"no system has both {Y} and one of {', '.join(XS)}.")
    figure = Figure(figsize=(4.6 * len(xs) + 3.4, 4.4 * len(galleries) + 0.4), layout="constrained")
    panels = figure.subplots(len(galleries), len(xs), squeeze=False)
    for row, prefix in zip(panels, galleries, strict=True):
        for axes, x in zip(row, xs, strict=True):
            _panel(axes, systems, prefix + x, prefix + Y)
            axes.set_xlabel(f"{XS[x]}  →")
            axes.set_title(GALLERIES[prefix], fontsize=10)
        row[0].set_ylabel("R@1 under the judge  →")
    names = [f"{number}  {_label(system.name)}" for number, system in enumerate(systems, start=1)]
    marks = dict(zip(*reversed(panels[0][0].get_legend_handles_labels()), strict=True))
    handles = [panels[0][0].plot([], [], linestyle="none")[0]] * len(names)
    figure.legend(
        [*marks.values(), *handles], [*marks, *names], loc="outside right center", fontsize=9, frameon=False,
        handlelength=1.6, labelspacing=0.45,
    )  # fmt: skip
    if title:
        figure.suptitle(_label(title))
    figure.draw_without_rendering()  # now the scale is known
    for row, prefix in zip(panels, galleries, strict=True):
        for axes, x in zip(row, xs, strict=True):
            _number(axes, _labels(axes, systems, prefix + x, prefix + Y))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _label(text: str) -> str:
    """Escape text that matplotlib would read as a formula."""
    return plain(text).replace("$", "\\$")


def _panel(axes: Any, systems: Sequence[System], x: str, y: str) -> None:
    """Draw the systems that have both metrics, and the frontier of the others."""
    shown = [each for each in systems if {x, y} <= set(each.figures)]
    if not shown:
        return
    others = [(each.mean(x), each.mean(y)) for each in shown if each.kind not in ("ours", "landmark")]
    best = max(each.mean(x) for each in shown)
    least = LEAST[x.rpartition("/")[2]] * best
    for kind, mark in MARKS.items():
        some = [each for each in shown if each.kind == kind and each.mean(x) >= least]
        if some:
            bars = {"xerr": [each.spread(x) for each in some], "yerr": [each.spread(y) for each in some]}
            axes.errorbar([e.mean(x) for e in some], [e.mean(y) for e in some], linestyle="none", **bars, **mark)
    if others:
        corners = frontier(others)
        edge = [(min(p[0] for p in others), corners[0][1]), *corners, (corners[-1][0], min(p[1] for p in others))]
        axes.plot(*zip(*edge, strict=True), color="#888888", linewidth=1, zorder=0, label="reach of all but ours")
    axes.grid(alpha=0.25)
    axes.margins(0.09)
    away = [each for each in shown if each.mean(x) < least]
    if away:
        axes.set_xlim(least, best + (best - least) * 0.09)
    for each in away:
        axes.plot(least, each.mean(y), "<", clip_on=False, color=MARKS[each.kind]["color"])


def _labels(axes: Any, systems: Sequence[System], x: str, y: str) -> dict[str, Point]:
    """Return the position of each system's label; systems off the axis get their value in the label."""
    found: dict[str, Point] = {}
    least = axes.get_xlim()[0]
    for number, each in enumerate(systems, start=1):
        if {x, y} <= set(each.figures):
            value = each.mean(x)
            found[str(number) if value >= least else f"{number} ({value:.2f})"] = (max(value, least), each.mean(y))
    return found


def _number(axes: Any, points: Mapping[str, Point]) -> None:
    """Write each label next to its point, where there is most room."""
    dots = [axes.transData.transform(point) for point in points.values()]
    taken: list[Point] = [(float(dot[0]), float(dot[1])) for dot in dots]
    for label, dot in zip(points, dots, strict=True):
        offsets = [(dx * far, dy * far) for far in (12, 20, 30) for dx, dy in _DIRECTIONS]
        if "(" in label:  # at the edge on the left
            offsets = [(32.0, float(dy)) for dy in (0, 9, -9, 18, -18, 27, -27)]
        places = {offset: (dot[0] + offset[0] * _SCALE, dot[1] + offset[1] * _SCALE) for offset in offsets}
        room = {
            offset: min(min(_apart(place, other) for other in taken), 16.0) - 0.35 * max(map(abs, offset))
            for offset, place in places.items()
        }
        best = max(room, key=lambda offset: room[offset])
        taken.append(places[best])
        line = {"arrowstyle": "-", "color": "#777777", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            label, points[label], xytext=best, textcoords="offset points", ha="center", va="center",
            fontsize=9, arrowprops=line if max(map(abs, best)) > 12 else None, zorder=5,
        )  # fmt: skip


_SCALE = 100 / 72
"""Pixels per point, at matplotlib's default resolution."""
_DIRECTIONS = ((0.0, 1.0), (1.0, 0.0), (0.0, -1.0), (-1.0, 0.0), (0.7, 0.7), (0.7, -0.7), (-0.7, -0.7), (-0.7, 0.7))


def _apart(first: Point, second: Point) -> float:
    return float(((first[0] - second[0]) ** 2 + (first[1] - second[1]) ** 2) ** 0.5) / _SCALE
