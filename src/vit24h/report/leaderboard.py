"""`vit24h leaderboard`: verified records ranked, and beside them every other one with the rules it breaks.

How ranks, ties and single seeds are shown is said in BENCHMARK.md. Must not know: figures, what the rules are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit24h.errors import UserError
from vit24h.records import Run, load_run
from vit24h.records.chain import config_fingerprint
from vit24h.records.verify import Finding, Verification, find_records, verify
from vit24h.report import units
from vit24h.report.arms import arm
from vit24h.report.comparison import Spread
from vit24h.report.tables import Block, Table, spread_text

DIGEST_DIGITS = 16  # as many as `vit24h verify --published` asks for


@dataclass(frozen=True)
class Entry:
    """The verified records of one configuration and one code on one kind of GPU, over its seeds."""

    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return arm(self.runs[0].arm).label

    @property
    def top1(self) -> Spread:
        return Spread(tuple(run.result["top1"] for run in self.runs))

    def beats(self, other: Entry) -> bool:
        """Its mean is higher by more than two standard errors of the difference, or, by a single seed, at all."""
        gap = self.top1.mean - other.top1.mean
        spreads = (self.top1, other.top1)
        if any(spread.n == 1 for spread in spreads):
            return gap > 0
        return gap > 2 * math.sqrt(sum(spread.sd**2 / spread.n for spread in spreads))


@dataclass(frozen=True)
class Leaderboard:
    """Everything below a folder that was run: ranked, or shown with what it breaks."""

    folder: Path
    verified: tuple[tuple[Verification, Run], ...]
    breaches: tuple[Verification, ...]

    def to_text(self) -> str:
        return "\n\n".join([*(table.to_text() for table in self._tables()), self._summary()])

    def to_markdown(self) -> str:
        return "\n".join(
            ["# Leaderboard\n", *(table.to_markdown() for table in self._tables()), self._summary() + "\n"]
        )

    def _tables(self) -> list[Table]:
        return [table for table in (self._ranking(), self._records(), self._breaches()) if table.blocks]

    def _summary(self) -> str:
        kept, all_records = len(self.verified), len(self.verified) + len(self.breaches)
        return f"{kept} of {all_records} records keep every rule of the benchmark."

    def _ranking(self) -> Table:
        columns = ("Rank", "Entry", "Suite", "Top-1 (%)", "Epochs", "Hours", "Parameters", "Lost time")
        by_gpu: dict[str, list[Run]] = {}
        for _, run in self.verified:
            by_gpu.setdefault(_gpus(run), []).append(run)
        blocks = []
        for gpu, runs in sorted(by_gpu.items()):
            entries = sorted(_entries(runs), key=lambda entry: -entry.top1.mean)
            rows = tuple(_ranked(entry, entries) for entry in entries)
            blocks.append(Block(f"{gpu} · ImageNet-1k · 24 h", rows, _data_note(runs)))
        notes = (
            "Top-1: mean ± sample standard deviation over n seeds, of the last weights.",
            "=: no more than two standard errors of the difference apart. (): a single seed, which has no spread.",
        )
        return Table(columns, tuple(blocks), notes, text_columns=3)

    def _records(self) -> Table:
        columns = ("Record", "Seed", "Top-1 (%)", "Hours", "Lost time", "Digest")
        rows = tuple(
            (
                _name(verification.path, self.folder),
                str(run.seed),
                units.percent(run.result["top1"]),
                f"{run.result['train_hours']:.2f}",
                units.duration(run.result["clock"]["lost_s"]),
                verification.digest[:DIGEST_DIGITS],
            )
            for verification, run in self.verified
        )
        return Table(columns, (Block("Verified records", rows),) if rows else ())

    def _breaches(self) -> Table:
        rows = []
        for verification in self.breaches:
            told = (_name(verification.path, self.folder), _claimed_top1(verification))
            for finding in verification.broken:
                rows.append((*told, finding.rule, finding.reason))
                told = ("", "")
        heading = "Outside the benchmark: the rules that each record breaks"
        return Table(
            ("Record", "Top-1 (%)", "Rule", "Found"),
            (Block(heading, tuple(rows)),) if rows else (),
            text_columns=4,
        )


def leaderboard(folder: Path) -> Leaderboard:
    """Verify every record below `folder`, whole or damaged, finished or not.

    Raises:
        UserError: there is no such folder, or no record in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with run folders below it, such as results/")
    verified: list[tuple[Verification, Run]] = []
    breaches: list[Verification] = []
    origins: dict[str, Path] = {}
    for path in find_records(folder):
        found = verify(path)
        if not found.holds:
            breaches.append(found)
            continue
        run = load_run(path)
        # A record counts once: one with another's log or weights is a copy, whatever else was changed in it.
        origin = [run.result["fingerprints"][key] for key in ("log", "weights")]
        if first := next((origins[part] for part in origin if part in origins), None):
            copied = Finding("no copy", "broken", f"has the log or the weights of {_name(first, folder)}")
            breaches.append(found.extended([copied]))
            continue
        origins |= dict.fromkeys(origin, path)
        verified.append((found, run))
    if not verified and not breaches:
        raise UserError(f"{folder}: no records below it: expected folders with log.jsonl and result.json")
    return Leaderboard(folder, tuple(verified), tuple(breaches))


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def _entries(runs: Iterable[Run]) -> list[Entry]:
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if key != "seed"}
        groups.setdefault((config_fingerprint(config), run.environment["code"]["fingerprint"]), []).append(run)
    return [Entry(tuple(group)) for group in groups.values()]


def _ranked(entry: Entry, entries: Sequence[Entry]) -> tuple[str, ...]:
    rank = 1 + sum(other.beats(entry) for other in entries)
    tied = any(not other.beats(entry) and not entry.beats(other) for other in entries if other is not entry)
    text = f"{rank}{' =' if tied else ''}"
    results = [run.result for run in entry.runs]
    return (
        f"({text})" if entry.top1.n == 1 else text,
        entry.name,
        ", ".join(dict.fromkeys(run.suite for run in entry.runs)),
        spread_text(entry.top1, 2),
        f"{_mean(result['epochs'] for result in results):.1f}",
        f"{_mean(result['train_hours'] for result in results):.2f}",
        units.amount(results[0]["parameters"]),
        units.duration(sum(result["clock"]["lost_s"] for result in results)),
    )


def _gpus(run: Run) -> str:
    """'NVIDIA H200', or both where a run went on with another one."""
    changes = (row["environment_changes"].get("gpu") for row in run.rows_of("resume"))
    gpus = [run.environment["gpu"], *(gpu for gpu in changes if gpu)]
    return ", then ".join(dict.fromkeys(gpu["name"] for gpu in gpus))


def _data_note(runs: Sequence[Run]) -> tuple[str, ...]:
    fingerprints = {run.environment["dataset"]["fingerprint"][:12] for run in runs}
    if len(fingerprints) == 1:
        return ()
    return (f"Their images differ in names or sizes, though not in number: {', '.join(sorted(fingerprints))}.",)


def _claimed_top1(verification: Verification) -> str:
    """What a record that breaks a rule says of itself; a dash where that cannot be read."""
    try:
        result = load_run(verification.path).result
    except UserError:
        return units.MISSING
    top1 = (result or {}).get("top1")
    return units.MISSING if type(top1) not in (int, float) or abs(top1) > 100 else units.percent(float(top1))


def _mean(values: Iterable[float]) -> float:
    return Spread(tuple(values)).mean
