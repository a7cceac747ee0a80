"""Reports on a training: contrast sheets, plots and tables."""

from __future__ import annotations

from hf_distinct.reporting.contrast_rows import ContrastRow
from hf_distinct.reporting.contrast_sheet import write_contrast_sheet
from hf_distinct.reporting.table import format_table, markdown_table

__all__ = ["ContrastRow", "format_table", "markdown_table", "write_contrast_sheet"]
