"""Records as tables: the results, where the time went, what a budget buys, the verdicts.

A table is made once and written as Markdown, LaTeX, HTML or plain text. Blocks are comparisons: rows of different
blocks stand under headings of their own, because they may not be compared. Must not know: figures, notebooks.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from vit24h.records import Run
from vit24h.report import learning, timing, units, verdicts
from vit24h.report.comparison import ArmRecord, Comparison, Spread, comparisons, is_smoke
from vit24h.report.latest import Latest, latest, status
from vit24h.report.paper import equivalence_text, is_deit_s, published, published_epochs
from vit24h.report.source import NO_RECORDS
from vit24h.report.standing import breaches, mark


@dataclass(frozen=True)
class Block:
    """Rows that may be compared with each other."""

    heading: str
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Table:
    """Text in cells; the first `text_columns` columns are words, the others numbers."""

    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    text_columns: int = 1

    def to_markdown(self) -> str:
        if not self.blocks:
            return f"{NO_RECORDS}\n"
        rule = "|" + "|".join(":--" if self._is_text(i) else "--:" for i in range(len(self.columns))) + "|"
        parts = []
        for block in self.blocks:
            rows = [self.columns, *block.rows]
            lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
            parts += [f"**{block.heading}**", "\n".join([lines[0], rule, *lines[1:]])]
            parts += ["\n".join(f"- {note}" for note in block.notes)] if block.notes else []
        parts += ["\n".join(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n\n".join(parts) + "\n"

    def to_latex(self) -> str:
        """A `tabular` for booktabs, everything escaped; headings and notes travel inside it."""
        if not self.blocks:
            return f"% {NO_RECORDS}\n"
        width = len(self.columns)
        alignment = "".join("l" if self._is_text(i) else "r" for i in range(width))
        lines = [
            "% Written by `vit24h report`. Needs \\usepackage{booktabs}.",
            f"\\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
            "\\toprule",
            _latex_row(self.columns),
        ]
        for block in self.blocks:
            lines += ["\\midrule", f"\\multicolumn{{{width}}}{{@{{}}l}}{{\\emph{{{_latex(block.heading)}}}}} \\\\"]
            lines += [_latex_row(row) for row in block.rows]
            lines += [_latex_note(note, width) for note in block.notes]
        lines += ["\\bottomrule", *(_latex_note(note, width) for note in self.notes), "\\end{tabular}"]
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        if not self.blocks:
            return f"<p>{html.escape(NO_RECORDS)}</p>"
        parts = []
        for block in self.blocks:
            head = "".join(f"<th{self._html_class(i)}>{html.escape(name)}</th>" for i, name in enumerate(self.columns))
            body = "".join(
                "<tr>"
                + "".join(f"<td{self._html_class(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row))
                + "</tr>\n"
                for row in block.rows
            )
            parts.append(
                f"<h4>{html.escape(block.heading)}</h4>\n<div class='wide'><table>\n<thead><tr>{head}</tr></thead>\n"
                f"<tbody>\n{body}</tbody></table></div>\n{_html_notes(block.notes)}"
            )
        return "\n".join(parts) + _html_notes(self.notes)

    def to_text(self) -> str:
        """For a terminal: columns aligned by spaces."""
        if not self.blocks:
            return NO_RECORDS.replace("`", "")
        parts = []
        for block in self.blocks:
            rows = [self.columns, *block.rows]
            widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
            lines = [
                "  ".join(
                    cell.ljust(width) if self._is_text(i) else cell.rjust(width)
                    for i, (cell, width) in enumerate(zip(row, widths, strict=True))
                ).rstrip()
                for row in rows
            ]
            rule = "─" * max(len(line) for line in lines)
            parts.append("\n".join([block.heading, rule, lines[0], rule, *lines[1:], rule, *block.notes]))
        return "\n\n".join([*parts, *self.notes])

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    __repr__ = to_text

    def _is_text(self, column: int) -> bool:
        return column < self.text_columns

    def _html_class(self, column: int) -> str:
        return "" if self._is_text(column) else " class='number'"


def results(groups: Sequence[Comparison]) -> Table:
    """The main table: every arm of every comparison, beside the paper's number where one is published."""
    columns = (
        "Arm",
        "Seeds",
        "Epochs",
        "Images",
        "Train time",
        "Top-1 (%)",
        "Δ baseline",
        "Top-5 (%)",
        "EMA top-1",
        "Parameters",
        "MACs",
        "Lost time",
        _paper_column(),
    )
    blocks = [Block(_heading(group), _result_rows(group), _notes(group)) for group in groups]
    notes = (
        "Mean ± sample standard deviation over n finished seeds, last weights, not the best epoch's.",
        "Images: training samples, every augmented crop counted. EMA: the averaged weights, beside the result, not it.",
    )
    if len(blocks) > 1:
        notes = (*notes, "The blocks differ in profile, machine, images or budget: not to be compared with each other.")
    return Table(columns, tuple(blocks), notes if blocks else ())


def results_csv(groups: Sequence[Comparison]) -> str:
    """The main table for machines: one row an arm, plain numbers, empty where there is none."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in groups:
        writer.writerows(_csv_row(group, record) for record in group.arms)
    return file.getvalue()


def closing_table(runs: Iterable[Run]) -> Table:
    """The results in few columns, for the end of a suite in a terminal."""
    wide = results(comparisons(runs))
    return replace(_with_columns(wide, [name for name in wide.columns if name not in _NOT_IN_TERMINAL]), notes=())


def time_by_size(groups: Sequence[Comparison]) -> Table:
    """Per arm and image size: step time, speed, and the shares of what is not a step; compiling where any was."""
    columns = (
        "Arm",
        "Image size",
        "Train time",
        _COMPILING,
        "Epochs",
        "Step (ms)",
        "Images/s",
        "Waiting for data",
        "Evaluation",
        "Checkpoints",
        "Set-up",
    )
    blocks = [Block(_heading(group), tuple(_time_rows(group)), _mark_note(group)) for group in groups]
    note = "Means over seeds. Step: without waiting. Waiting: share of the training time."
    if any(run.rows_of("compile") for group in groups for run in group.runs):
        note += " Compiling: within the training time, in no step."
        return Table(columns, tuple(blocks), (note,))
    table = Table(columns, tuple(blocks), (note,) if blocks else ())
    return _with_columns(table, [name for name in columns if name != _COMPILING])


def budget_buys(groups: Sequence[Comparison]) -> Table:
    """Epochs that half, one, two and four times the budget hold, at the speed each arm had on this machine."""
    blocks = []
    columns: tuple[str, ...] = ()
    for group in groups:
        hours = group.budget_hours or 24
        budgets_s = [factor * hours * 3600 for factor in (0.5, 1, 2, 4)]
        columns = columns or ("Arm", "Epoch at final size", *("½ ×", "1 ×", "2 ×", "4 ×"))
        rows = [row for record in group.arms if (row := _budget_row(record, budgets_s))]
        heading = f"{_heading(group)}: epochs in " + ", ".join(units.round_duration(s) for s in budgets_s)
        blocks.append(Block(heading, tuple(rows), _mark_note(group) + _paper_equivalent_note(group)))
    note = "From measured speed; ≥: the schedule comes to image sizes that the record never trained at."
    return Table(columns, tuple(blocks), (note,) if blocks else ())


def claims(groups: Sequence[Comparison]) -> Table:
    """Claim by claim: published gap, gap in these records, verdict with its reason."""
    columns = ("Claim", "Verdict", "Why", "Published gap", "Gap in these records")
    blocks = []
    for group in groups:
        rows = tuple(
            (finding.statement, finding.verdict, finding.reason, finding.published, finding.measured)
            for finding in verdicts.findings(group)
        )
        blocks.append(Block(_heading(group), rows, _mark_note(group)))
    return Table(columns, tuple(blocks), (verdicts.HOW,) if blocks else (), text_columns=5)


def published_numbers(groups: Sequence[Comparison]) -> Table:
    """Arm by arm: this record's top-1 beside the paper's, and whether it is met."""
    columns = ("Arm", "Verdict", "Why", _paper_column(), "Top-1 (%)", "Epochs")
    blocks = []
    for group in groups:
        rows = []
        for record in group.arms:
            if published(record.arm.name):
                verdict, reason = verdicts.number_met(group, record)
                epochs = _mean_text(record, lambda now: now.epochs, lambda value: f"{value:.1f}")
                row = (verdict, reason, _paper_text(record), _top1_text(record, _digits(group)), epochs)
                rows.append((record.arm.label, *row))
        if rows:
            blocks.append(Block(_heading(group), tuple(rows), _mark_note(group)))
    return Table(columns, tuple(blocks), text_columns=3)


def gap_sources(groups: Sequence[Comparison]) -> Table:
    """Pair by pair: is a gap there at equal epochs already, or does one arm just see more images in its time?"""
    columns = (
        "Gap",
        "Comes from",
        "Points at the end",
        "Points at equal epochs",
        "Epochs",
        "Epochs in the paper",
        "Images/s at full size",
        "Validation loss",
    )
    blocks = []
    for group in groups:
        rows = tuple(row for claim in verdicts.PAIRS if (row := _gap_source_row(group, claim)))
        nothing = () if rows else ("No two arms of a claim have finished.",)
        notes = (*_mark_note(group), *nothing, *_schedule_note(group), *_pace_note(group))
        blocks.append(Block(_heading(group), rows, notes))
    notes = (
        "Means over finished seeds, first arm / second arm. Equal epochs: after the last epoch that every seed of both "
        "evaluated; those of a curriculum are on small images. Losses are of the last weights.",
    )
    return Table(columns, tuple(blocks), notes if blocks else (), text_columns=2)


def order_in_words(groups: Sequence[Comparison]) -> str:
    """In Markdown: how the arms come out, whether it is the paper's order, and how much of that is known."""
    texts = []
    for group in groups:
        texts += [f"**{_heading(group)}**"] if len(groups) > 1 else []
        texts.append(" ".join(verdicts.order_in_words(group, _digits(group))))
    return "\n\n".join(texts or [NO_RECORDS]) + "\n"


def main_columns(groups: Sequence[Comparison]) -> Table:
    """The main table in the columns that a README has room for."""
    wide = results(groups)
    first, *_ = wide.notes or ("",)
    notes = (first, "EMA: the averaged weights, beside the result, not it.") if first else ()
    return replace(_with_columns(wide, _IN_README), notes=notes)


def spread_text(spread: Spread, digits: int) -> str:
    """'43.52 ± 0.21 (n=3)'; one seed has no spread: '43.52 (n=1)'."""
    if not spread.n:
        return units.MISSING
    mean = units.percent(spread.mean, digits)
    return f"{mean} (n=1)" if spread.n == 1 else f"{mean} ± {units.percent(spread.sd, digits)} (n={spread.n})"


def _with_columns(table: Table, names: Sequence[str]) -> Table:
    keep = [index for index, name in enumerate(table.columns) if name in names]
    blocks = (
        replace(block, rows=tuple(tuple(row[index] for index in keep) for row in block.rows)) for block in table.blocks
    )
    return replace(table, columns=tuple(table.columns[index] for index in keep), blocks=tuple(blocks))


def _gap_source_row(group: Comparison, claim: verdicts.Claim) -> tuple[str, ...] | None:
    measured = verdicts.gap(group, claim)
    if measured is None:
        return None
    pair = [record for name in (claim.better, claim.worse) if (record := group.find(name))]
    better, worse = (learning.top1_by_epoch(record.finished) for record in pair)
    both = max(better.keys() & worse.keys(), default=None)
    at_equal = math.nan if both is None else better[both] - worse[both]
    epochs = [record.spread(_epochs).mean for record in pair]
    return (
        f"{pair[0].arm.label} − {pair[1].arm.label}",
        verdicts.source_of_gap(measured, at_equal, epochs[0] / epochs[1] if epochs[1] else math.nan),
        verdicts.gap_text(measured),
        units.MISSING if both is None else f"{units.signed(at_equal)} after epoch {both}",
        _of_both(pair, _epochs, "{:.1f}"),
        " / ".join(str(published_epochs(record.arm.name) or units.MISSING) for record in pair),
        _of_both(pair, learning.pace_at_full_size, "{:,.0f}"),
        _of_both(pair, lambda run: run.result.get("val_loss"), "{:.3f}"),
    )


def _epochs(run: Run) -> float | None:
    return latest(run).epochs


def _of_both(pair: Sequence[ArmRecord], quantity: Callable[[Run], float | None], form: str) -> str:
    means = (record.spread(quantity).mean for record in pair)
    return " / ".join(units.MISSING if math.isnan(mean) else form.format(mean) for mean in means)


def _schedule_note(group: Comparison) -> tuple[str, ...]:
    if any((run.config.get("optimizer") or {}).get("schedule_epochs") for run in group.runs):
        return ()
    return ("Learning rates end with the budget: at equal epochs, the arm with fewer of them is further down its own.",)


def _pace_note(group: Comparison) -> tuple[str, ...]:
    """How much the machine itself varied: where epochs of one arm differ, its epochs in a budget do too."""
    ranges = []
    for record in group.arms:
        paces = [pace for run in record.finished for pace in learning.epoch_paces_at_full_size(run)]
        if len(paces) > 1:
            ranges.append((max(paces) / min(paces), record.arm.label, min(paces), max(paces)))
    if not ranges:
        return ()
    _, label, low, high = max(ranges)
    return (
        f"How even the machine was: {label}'s whole epochs at full size ran at {low:,.0f} to {high:,.0f} images/s.",
    )


def _heading(group: Comparison) -> str:
    return f"{group.heading} · {group.images} · {group.budget}"


def _mark_note(group: Comparison) -> tuple[str, ...]:
    text = mark(group)
    return (f"{text[0].upper()}{text[1:]}.",) if text else ()


def _notes(group: Comparison) -> tuple[str, ...]:
    notes = [*_mark_note(group), *(f"{note[0].upper()}{note[1:]}." for note in group.notes)]
    for record in group.arms:
        notes += [f"{record.arm.label}, seed {run.seed}: {status(run)}." for run in record.others]
        lost = [run for run in record.runs if latest(run).lost_s]
        notes += [
            f"{record.arm.label}, seed {run.seed}: {units.duration(latest(run).lost_s)} of work lost to interruptions."
            for run in lost
        ]
    return (*notes, *_paper_equivalent_note(group))


def _paper_equivalent_note(group: Comparison) -> tuple[str, ...]:
    """How many hours of this machine are the authors' 24, where it trained DeiT-S at 224 px: the baseline, or else."""
    for record in group.arms:
        runs = [run for run in record.finished or record.runs if is_deit_s(run.config["model"]) and not is_smoke(run)]
        times = [time for run in runs for time in timing.time_by_size(run)]
        speeds = [time.images_per_s for time in times if time.image_size == runs[0].config["model"]["image_size"]]
        if speeds and timing.mean_over(speeds) > 0:  # not a NaN either
            return (equivalence_text(timing.mean_over(speeds)),)
    return ()


def _result_rows(group: Comparison) -> tuple[tuple[str, ...], ...]:
    digits, baseline = _digits(group), group.find("baseline")
    return tuple(_result_row(record, baseline, digits) for record in group.arms)


def _result_row(record: ArmRecord, baseline: ArmRecord | None, digits: int) -> tuple[str, ...]:
    finished, all_seeds = len(record.finished), len(record.runs)
    return (
        record.arm.label,
        str(finished) if finished == all_seeds else f"{finished} of {all_seeds}",
        _mean_text(record, lambda now: now.epochs, lambda value: f"{value:.1f}"),
        _mean_text(record, lambda now: now.samples, units.amount),
        _mean_text(record, lambda now: now.train_s, units.duration),
        _top1_text(record, digits),
        _difference_text(record, baseline, digits),
        units.percent(record.spread(lambda run: run.result["top5"]).mean, digits) if finished else units.MISSING,
        units.percent(record.spread(_ema_top1).mean, digits) if record.spread(_ema_top1).n else units.MISSING,
        units.amount(latest(record.runs[0]).parameters),
        units.amount(latest(record.runs[0]).macs),
        units.duration(sum(latest(run).lost_s for run in record.runs)),
        _paper_text(record),
    )


def _top1_text(record: ArmRecord, digits: int) -> str:
    if record.finished:
        return spread_text(record.top1, digits)
    run = record.runs[0]
    return f"{units.percent(latest(run).top1, digits)} {'failed' if run.state == 'failed' else 'so far'}"


def _mean_text(record: ArmRecord, quantity: Callable[[Latest], float | None], text: Callable[[float], str]) -> str:
    """Mean over the finished seeds; where none is, that of the first seed, which its row marks as unfinished."""
    runs = record.finished or record.runs[:1]
    values = [value for run in runs if (value := quantity(latest(run))) is not None]
    return text(sum(values) / len(values)) if values else units.MISSING


def _difference_text(record: ArmRecord, baseline: ArmRecord | None, digits: int) -> str:
    if baseline is None or record.arm == baseline.arm or not (baseline.finished and record.finished):
        return units.MISSING
    return units.signed(record.top1.mean - baseline.top1.mean, digits)


def _paper_text(record: ArmRecord) -> str:
    return " / ".join(units.percent(curve.last, 1) for curve in published(record.arm.name)) or units.MISSING


def _paper_column() -> str:
    """'Paper (ImageNet, ~22 h)': the hour at which the published curves end."""
    ends = sorted(curve.hours[-1] for curve in (*published("baseline"), *published("combined")))
    return f"Paper (ImageNet, ~{ends[len(ends) // 2]:.0f} h)"


def _ema_top1(run: Run) -> float | None:
    return ((run.result or {}).get("ema") or {}).get("top1")


def _digits(group: Comparison) -> int:
    """Digits after the point that the number of validation images carries."""
    images = max((latest(run).val_images or 0 for run in group.runs), default=0)
    return 2 if images >= 10_000 else 1


def _time_rows(group: Comparison) -> Iterable[tuple[str, ...]]:
    for record in group.arms:
        runs = record.finished or record.runs[:1]
        by_size: dict[int, list[timing.TimeAtSize]] = {}
        for run in runs:
            for time in timing.time_by_size(run):
                by_size.setdefault(time.image_size, []).append(time)
        per_epoch = timing.samples_per_epoch(runs[0])
        label = record.arm.label if record.finished else f"{record.arm.label} (so far)"
        for size, times in by_size.items():
            yield (
                label,
                f"{size} px",
                units.duration(timing.mean_over([time.train_s for time in times])),
                units.duration(timing.mean_over([time.compile_s for time in times])),
                f"{timing.mean_over([time.samples / per_epoch for time in times]):.1f}" if per_epoch else units.MISSING,
                _number(timing.mean_over([time.step_ms for time in times])),
                units.count(timing.mean_over([time.images_per_s for time in times])),
                _share(timing.mean_over([time.waiting_share for time in times])),
                units.duration(timing.mean_over([time.evaluation_s for time in times])),
                units.duration(timing.mean_over([time.checkpoints_s for time in times])),
                units.duration(timing.mean_over([time.setup_s for time in times])),
            )


def _budget_row(record: ArmRecord, budgets_s: list[float]) -> tuple[str, ...] | None:
    run = (record.finished or record.runs)[0]
    sizes = {time.image_size: time for time in timing.time_by_size(run)}
    per_epoch = timing.samples_per_epoch(run)
    if not sizes or not per_epoch:
        return None
    at_final_size = sizes.get(run.config["model"]["image_size"])
    epoch = units.duration(per_epoch / at_final_size.images_per_s) if at_final_size else "not reached"
    bought = (timing.epochs_bought(run, budget_s) for budget_s in budgets_s)
    cells = (
        units.MISSING if math.isnan(epochs) else f"{'≥ ' if at_least else ''}{epochs:.1f}"
        for epochs, at_least in bought
    )
    return (record.arm.label, epoch, *cells)


def _csv_row(group: Comparison, record: ArmRecord) -> dict[str, object]:
    now = [latest(run) for run in (record.finished or record.runs[:1])]
    baseline = group.find("baseline")
    both = bool(baseline and baseline.finished and record.finished and baseline.arm != record.arm)
    row = {
        "arm": record.arm.name,
        "suite": group.runs[0].suite,
        "profile": group.profile,
        "machine": group.machine,
        "smoke": group.smoke,
        "state": record.state,
        "seeds_finished": len(record.finished),
        "seeds": len(record.runs),
        "epochs": _mean(now, "epochs"),
        "images": _mean(now, "samples"),
        "train_hours": _mean(now, "train_s", 1 / 3600),
        "top1_mean": record.top1.mean,
        "top1_sd": record.top1.sd,
        "top1_difference_to_baseline": record.top1.mean - baseline.top1.mean if both else math.nan,
        "top5_mean": record.spread(lambda run: run.result["top5"]).mean,
        "ema_top1_mean": record.spread(_ema_top1).mean,
        "parameters": now[0].parameters,
        "macs": now[0].macs,
        "lost_s": sum(latest(run).lost_s for run in record.runs),
        "paper_top1": " / ".join(str(curve.last) for curve in published(record.arm.name)),
        "breaches": "; ".join(dict.fromkeys(reason for run in record.runs for reason in breaches(run))),
    }
    return {key: _plain_number(value) if isinstance(value, float) else value for key, value in row.items()}


def _plain_number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _mean(now: list[Latest], name: str, factor: float = 1.0) -> float:
    values = [value * factor for one in now if (value := getattr(one, name)) is not None]
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return units.MISSING if math.isnan(value) else f"{value:.1f}"


def _share(value: float) -> str:
    return units.MISSING if math.isnan(value) else f"{100 * value:.1f} %"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_latex(cell) for cell in cells) + " \\\\"


def _latex_note(note: str, width: int) -> str:
    return f"\\multicolumn{{{width}}}{{@{{}}l}}{{\\footnotesize {_latex(note)}}} \\\\"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _html_notes(notes: Sequence[str]) -> str:
    return "".join(f"<p class='note'>{html.escape(note)}</p>\n" for note in notes)


_IN_README = ("Arm", "Seeds", "Epochs", "Train time", "Top-1 (%)", "Δ baseline", "Top-5 (%)", "EMA top-1", "Parameters")
_COMPILING = "Compiling"
_NOT_IN_TERMINAL = ("Δ baseline", "EMA top-1", _paper_column())
_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "×": "$\\times$",
    "Δ": "$\\Delta$",
    "≥": "$\\geq$",
    "≤": "$\\leq$",
    "½": "$\\frac{1}{2}$",
    "·": "$\\cdot$",
    "−": "$-$",
    "–": "--",
    "µ": "$\\mu$",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}
_CSV_COLUMNS = [
    "arm",
    "suite",
    "profile",
    "machine",
    "smoke",
    "state",
    "seeds_finished",
    "seeds",
    "epochs",
    "images",
    "train_hours",
    "top1_mean",
    "top1_sd",
    "top1_difference_to_baseline",
    "top5_mean",
    "ema_top1_mean",
    "parameters",
    "macs",
    "lost_s",
    "paper_top1",
    "breaches",
]
