"""Writes a suite's whole report: tables, figures, executed notebooks, and the page that shows them all."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vit24h.errors import UserError
from vit24h.report import figures, tables
from vit24h.report.page import CAPTIONS, index_page
from vit24h.report.source import Suite, read_suite

if TYPE_CHECKING:
    from vit24h.report.notebooks import Executed


@dataclass(frozen=True)
class ReportFiles:
    """What was written, and where to look first: `index`."""

    folder: Path
    index: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]  # PNG and PDF of each
    notebooks: tuple[Path, ...]  # executed .ipynb and .html of each


def write_report(suite_folder: Path, *, notebooks: bool = True, folder: Path | None = None) -> ReportFiles:
    """Make tables and figures from the records below `suite_folder`, whatever state they are in.

    Args:
        suite_folder: a suite, or a folder of several (then nothing is compared across them).
        notebooks: execute the notebooks of `paper_figures/` too.
        folder: where to write; `report/` in the suite's folder unless given.

    Raises:
        UserError: no such folder; not allowed to write there; a notebook failed (all else is written by then).
    """
    suite = read_suite(suite_folder)
    folder = folder or suite_folder / "report"
    groups = suite.comparisons
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _notebooks_executing(suite_folder, folder) if notebooks else nullcontext([]) as executed:
            table_files = _write_tables(suite, folder)
            figure_files = [file for name in CAPTIONS for file in getattr(figures, name)(groups).save(folder, name)]
        index = folder / "index.html"
        index.write_text(index_page(suite, list(CAPTIONS), executed, folder), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}: the report cannot be written there ({error.strerror}); expected a folder that this user may "
            "write to: name another place for it"
        ) from error
    failed = [f"{one.name}.ipynb ({one.problem})" for one in executed if one.problem]
    if failed:
        raise UserError(f"{folder}: the report is written, but a notebook did not run to its end: {'; '.join(failed)}")
    notebook_files = [file for one in executed for file in (one.notebook, one.html)]
    return ReportFiles(folder, index, tuple(table_files), tuple(figure_files), tuple(notebook_files))


def _notebooks_executing(suite_folder: Path, folder: Path) -> AbstractContextManager[list[Executed]]:
    # Jupyter's packages take a second to import: not for a report without notebooks, nor for a table in a terminal.
    from vit24h.report.notebooks import executing, notebook_sources

    return executing(notebook_sources(), suite_folder, folder)


def _write_tables(suite: Suite, folder: Path) -> list[Path]:
    groups = suite.comparisons
    results = tables.results(groups)
    left_out = tuple(f"Damaged and left out: {problem}" for problem in suite.damaged)
    results = replace(results, notes=results.notes + left_out)
    contents = {"table.md": results.to_markdown(), "table.tex": results.to_latex()}
    contents["table.csv"] = tables.results_csv(groups)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in contents]
