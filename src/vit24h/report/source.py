"""Which records a report or a notebook shows, and reading them without stumbling over a damaged one.

Must not know: figures, tables.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vit24h import paths
from vit24h.errors import UserError
from vit24h.records import Run, load_run
from vit24h.report.comparison import Comparison, comparisons
from vit24h.report.latest import status
from vit24h.report.standing import mark

NO_RECORDS = "No records yet. `./run_all.sh --quick` makes a first set in about five minutes, on any machine."


@dataclass(frozen=True, repr=False)
class Suite:
    """The records below one folder."""

    folder: Path | None  # None: there are none anywhere
    runs: tuple[Run, ...] = ()
    damaged: tuple[str, ...] = ()  # what cannot be read, and why

    @property
    def comparisons(self) -> list[Comparison]:
        return comparisons(self.runs)

    @property
    def name(self) -> str:
        """'runs/quick': enough to find it, and no path of this machine."""
        return f"{self.folder.parent.name}/{self.folder.name}" if self.folder else ""

    def description(self) -> str:
        """In Markdown: which records these are, what they are not, and how far they are."""
        if not self.runs:
            return "\n".join([NO_RECORDS, *(f"- Damaged and left out: {text}" for text in self.damaged)])
        lines = [f"**Records: `{self.name}`**", ""]
        for group in self.comparisons:
            lines.append(f"- {group.heading} · {group.images} · {group.budget} · {group.seeds}")
            lines += [f"  - **{mark(group)}**"] if mark(group) else []
            lines += [f"  - {note}" for note in group.notes]
            lines += [
                f"  - {record.arm.label}, seed {run.seed}: {status(run)}"
                for record in group.arms
                for run in record.others
            ]
        if len(self.comparisons) > 1:
            lines.append("- **These differ in profile, machine, images or budget: they are not compared.**")
        return "\n".join([*lines, *(f"- Damaged and left out: {text}" for text in self.damaged)])

    def _repr_markdown_(self) -> str:
        return self.description()

    __repr__ = description


def read_suite(folder: Path) -> Suite:
    """Every run below `folder`. One that cannot be read is named in `damaged`, and the others are shown.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a suite's folder of run records, as under {paths.runs()}")
    runs, damaged = [], []
    for config in sorted(folder.glob("**/config.yaml")):
        if (config.parent / "log.jsonl").is_file():
            try:
                run = load_run(config.parent)
                _require_complete(run)
                runs.append(run)
            except UserError as error:
                damaged.append(str(error).replace(f"{folder}{os.sep}", ""))
    return Suite(folder.resolve(), tuple(runs), tuple(damaged))


def open_suite() -> Suite:
    """The suite that a notebook shows.

    `VIT24H_SUITE` where it is set; else the one last written to under `runs/` (or `VIT24H_RUNS`); else the committed
    one under `results/`; else an empty one.
    """
    chosen = os.environ.get("VIT24H_SUITE")
    if chosen:
        return read_suite(Path(chosen))
    for place in (paths.runs(), paths.results()):
        suites = [folder for folder in _folders(place) if _last_written(folder)]
        if suites:
            return read_suite(max(suites, key=_last_written))
    return Suite(None)


def _require_complete(run: Run) -> None:
    """What tables and figures read must be there: an edited or foreign record is named, not stumbled over."""
    for section in ("model", "curriculum", "data", "budget"):
        if not isinstance(run.config.get(section), dict):
            raise UserError(f"{run.path / 'config.yaml'}: not a resolved configuration: no section {section}")
    for row in run.rows:
        clock = row.get("clock")
        numbers = {name: row.get(name) for name in ("step", "samples_seen", "image_size")}
        numbers["clock.train_s"] = clock.get("train_s") if isinstance(clock, dict) else None
        own = {"eval": "top1", "compile": "compile_s"}.get(row["event"])
        numbers |= {own: row.get(own)} if own else {}
        _require_numbers(numbers, f"{run.path / 'log.jsonl'}: a row of event {row['event']}")
    if run.result is not None:
        numbers = {name: run.result.get(name) for name in ("top1", "top5", "epochs", "samples_seen", "train_hours")}
        _require_numbers(numbers, str(run.path / "result.json"))


def _require_numbers(numbers: dict[str, object], where: str) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where}: {name} is {value!r}, expected a number")


def _folders(place: Path) -> list[Path]:
    return sorted(folder for folder in place.iterdir() if folder.is_dir()) if place.is_dir() else []


def _last_written(suite: Path) -> str:
    """Time stamp of the newest log row below the folder; empty without one. Checked-out files all have one age."""
    return max((_last_time(log) for log in suite.glob("**/log.jsonl")), default="")


def _last_time(log: Path) -> str:
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            return str(json.loads(line)["time"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill
    return ""
