"""Records to tables, figures and executed notebooks. Must not know: the engine, torch.

`write_report` makes everything for a suite; `render_table` is the closing table of a terminal; notebooks start with
`open_suite` and draw with `figures` and `tables`.
"""

from __future__ import annotations

from collections.abc import Iterable

from vit24h.records import Run
from vit24h.report import figures, tables
from vit24h.report.source import Suite, open_suite, read_suite
from vit24h.report.write import ReportFiles, write_report

__all__ = ["ReportFiles", "Suite", "figures", "open_suite", "read_suite", "render_table", "tables", "write_report"]


def render_table(runs: Iterable[Run]) -> str:
    """The results of these runs as text for a terminal, with what they are not (a smoke run, ...) below."""
    return tables.closing_table(runs).to_text()
