"""Tables of metrics, as plain text and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_distinct.text.escaping import as_markdown, plain

Metrics = Mapping[str, Mapping[str, float]]


def format_table(metrics: Metrics, columns: Sequence[str] | None = None, digits: int = 3) -> str:
    """Return a table of fixed-width text, one line per system.

    Args:
        metrics: the metrics (columns) of each system (row), by name.
        columns: which metrics to show, in this order; by default all, in order of first appearance.
        digits: digits after the decimal point; integers have none, missing values are shown as "-".

    Raises:
        ValueError: there are no rows, or no row has a requested column.

    Example:
        >>> print(format_table({"teacher forcing": {"R@1": 0.5}, "ours": {"R@1": 0.75, "words": 12}}))
                            R@1  words
        ---------------  ------  -----
        teacher forcing   0.500      -
        ours              0.750     12
    """
    cells = [[plain(cell) for cell in row] for row in _cells(metrics, columns, digits)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_line(row, widths) for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def markdown_table(metrics: Metrics, columns: Sequence[str] | None = None, digits: int = 3) -> str:
    """Return the same table in Markdown.

    Args:
        metrics: see `format_table`.
        columns: see `format_table`.
        digits: see `format_table`.

    Raises:
        ValueError: see `format_table`.
    """
    header, *rows = _cells(metrics, columns, digits)
    header, rows = list(map(as_markdown, header)), [[as_markdown(label), *values] for label, *values in rows]
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _cells(metrics: Metrics, columns: Sequence[str] | None, digits: int) -> list[list[str]]:
    """Return the table as strings, the header first."""
    if not metrics:
        raise ValueError("a table needs at least one row of metrics.")
    present = list(dict.fromkeys(name for row in metrics.values() for name in row))
    names = present if columns is None else list(columns)
    absent = [name for name in names if name not in present]
    if absent:
        raise ValueError(f"no row has the column {absent[0]!r}; there are {', '.join(map(repr, present))}.")
    rows = [[label, *(_format(row.get(name), digits) for name in names)] for label, row in metrics.items()]
    return [["", *names], *rows]


def _format(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _line(row: list[str], widths: list[int]) -> str:
    label, *values = row
    numbers = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
    return "  ".join([label.ljust(widths[0]), *numbers])
