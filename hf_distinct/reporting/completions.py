"""The rollouts of a training step as a table on the screen."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hf_distinct.text.escaping import plain

Row = TypeVar("Row")
PREFIXES = re.compile("^(reward|extra)/")
IMAGE = "image_id"
TEXT_WIDTH = 24


def completions_table(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return a table as wide as the terminal, in which long texts are wrapped.

    If the columns of numbers leave less than `TEXT_WIDTH` characters to each text, one column holds all numbers of a
    row, each with its name.

    Args:
        rows: At least one; all have the same names. Numbers are shown with three digits, None as "-".
        title: Shown above the table.

    Example:
        >>> print(completions_table([{"rollout": "a red dog", "reward/total": 0.5, "advantage": -0.25}], "Step 10"))
                   Step 10
         ────────────────────────────
         rollout     total  advantage
         ────────────────────────────
         a red dog   0.500     -0.250
         ────────────────────────────
    """
    from rich import box  # here: only who asks for this table needs rich
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.HORIZONTALS, show_lines=True, collapse_padding=True, pad_edge=False)
    width = Console().width
    headings = {name: plain(PREFIXES.sub("", name)) for name in rows[0]}
    texts = [name for name in rows[0] if any(isinstance(row[name], str) for row in rows)]
    numbers = [name for name in rows[0] if name not in texts]
    apart = sum(max(len(headings[name]), 6) + 2 for name in numbers) + TEXT_WIDTH * len(texts) <= width
    for name in texts:
        table.add_column(Text(headings[name]), overflow="fold", min_width=8, no_wrap=name == IMAGE)
    for name in numbers if apart else ["rewards"]:
        table.add_column(Text(headings.get(name, name)), justify="right", no_wrap=True, min_width=6)
    for row in rows:
        cells = [_cell(row[name]) if apart else f"{headings[name]} {_cell(row[name])}" for name in numbers]
        cells = cells if apart else ["\n".join(cells)]
        table.add_row(*(Text(each) for each in [*(_cell(row[name]) for name in texts), *cells]))  # never markup
    screen = io.StringIO()
    Console(file=screen, width=width).print(table)
    lines = (line.rstrip() for line in screen.getvalue().splitlines())
    encoding = sys.stdout.encoding or "utf-8"
    return "\n".join(lines).encode(encoding, "replace").decode(encoding)


def spread(rows: Sequence[Row], count: int | None) -> list[Row]:
    """Return at most ``count`` rows at even distances; None: all of them."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[place * len(rows) // count] for place in range(count)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-" if value is None else plain(str(value))
