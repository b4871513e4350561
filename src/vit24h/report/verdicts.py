"""Is it reproduced? Claim by claim, from the records, with the uncertainty; no verdict where they carry none.

A verdict on the paper needs benchmark records: finished, on ImageNet-1k, within the budget, two seeds or more. Other
records still show a gap, and are told that it says nothing about the claim. Must not know: figures, tables.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from vit24h.report import units
from vit24h.report.arms import arm
from vit24h.report.comparison import ArmRecord, Comparison, Spread
from vit24h.report.paper import READING_ERROR_TOP1, in_one_plot, published, published_gaps
from vit24h.report.standing import breaches, mark

REPRODUCED, NOT_REPRODUCED, NO_VERDICT = "reproduced", "not reproduced", "no verdict"
HOW = (
    "Gaps are differences of mean final top-1 in points, ± 95 % by Welch's t-interval over seeds. A verdict needs two "
    "finished seeds of both arms that keep the benchmark's rules, and an interval that leaves out zero. Published gaps "
    f"are read off plots, each end ± {READING_ERROR_TOP1} points."
)


@dataclass(frozen=True)
class Claim:
    """`better` ends with a higher top-1 than `worse` under the same budget."""

    statement: str
    better: str
    worse: str


@dataclass(frozen=True)
class Gap:
    """Difference of two arms' mean final top-1, in points."""

    points: float
    half_width: float  # of the 95 % interval; NaN with one seed
    seeds: tuple[int, int]


@dataclass(frozen=True)
class Finding:
    statement: str
    verdict: str
    reason: str
    published: str
    measured: str


CLAIMS = (
    Claim("Locality makes DeiT-S better at equal training time", "locality", "baseline"),
    Claim("The image-size curriculum makes locality better again", "combined", "locality"),
    Claim("The image-size curriculum makes DeiT-S better", "curriculum", "baseline"),
    Claim("Together they beat DeiT-S by a wide margin", "combined", "baseline"),
    Claim("Together they beat LocalViT-S by a wide margin", "combined", "localvit"),
)
# What the paper's order says besides.
PAIRS = (
    *CLAIMS,
    Claim("Locality ends above LocalViT-S", "locality", "localvit"),
    Claim("DeiT-S ends above LocalViT-S", "baseline", "localvit"),
)
PAPER_ORDER = ("combined", "locality", "baseline", "localvit")  # best first


def findings(comparison: Comparison) -> list[Finding]:
    """One for each claim on a gap, then one on the order of the arms."""
    return [*(_finding(comparison, claim) for claim in CLAIMS), _order_finding(comparison)]


def gap(comparison: Comparison, claim: Claim) -> Gap | None:
    """The claim's gap in the finished runs of these records; None where an arm has none."""
    better, worse = comparison.find(claim.better), comparison.find(claim.worse)
    if better is None or worse is None or not better.finished or not worse.finished:
        return None
    a, b = better.top1, worse.top1
    return Gap(a.mean - b.mean, _welch_half_width(a, b), (a.n, b.n))


def order_in_words(comparison: Comparison, digits: int = 1) -> list[str]:
    """Sentences on how the arms come out by mean top-1, beside the paper's order, and what of it is known."""
    finished = [record for record in comparison.arms if record.finished]
    if len(finished) < 2:
        return ["There is no order yet: fewer than two arms have finished."]
    ranked = sorted(finished, key=lambda record: -record.top1.mean)
    shown = (f"{record.arm.label} {units.percent(record.top1.mean, digits)}" for record in ranked)
    sentences = [f"By mean top-1 the arms come out {' > '.join(shown)} ({comparison.seeds})."]
    published_names = [name for name in PAPER_ORDER if comparison.find(name) in finished]
    swapped = [
        f"{arm(b).label} above {arm(a).label}"
        for a, b in itertools.combinations(published_names, 2)
        if comparison.find(b).top1.mean > comparison.find(a).top1.mean
    ]
    if len(published_names) > 1:
        order_there = _order_text(published_names)
        sentences.append(
            f"The paper's order is {order_there}: here {' and '.join(swapped)}."
            if swapped
            else f"That is the paper's order, {order_there}."
        )
    steps = [gap(comparison, Claim("", a.arm.name, b.arm.name)) for a, b in itertools.pairwise(ranked)]
    if any(math.isnan(step.half_width) for step in steps):
        return [*sentences, "One seed has no spread: which of these steps are chance is not known."]
    known = sum(step.points > step.half_width for step in steps)
    count = f"all {len(steps)}" if known == len(steps) else f"{known or 'none'} of the {len(steps)}"
    return [
        *sentences,
        f"Of the steps from one arm to the next, {count} are larger than their 95 % interval over seeds.",
    ]


def source_of_gap(measured: Gap, at_equal_epochs: float, epochs_ratio: float) -> str:
    """Why the first arm is ahead or behind, in words: what an epoch teaches it, or how many its time holds.

    Args:
        at_equal_epochs: the gap, in points, after the last epoch that both arms evaluated; NaN without one.
        epochs_ratio: the first arm's epochs in its time, divided by the second's.
    """
    ahead, ahead_at_equal = measured.points > 0, at_equal_epochs > 0
    if math.isnan(at_equal_epochs) or measured.points == 0:
        source = units.MISSING
    elif ahead == ahead_at_equal:
        source = "more from each epoch" if ahead else "less from each epoch"
        if ahead and epochs_ratio > _MANY_MORE:
            source += ", and more of them"
        elif not ahead and epochs_ratio < 1 / _MANY_MORE:
            source += ", and fewer of them"
    else:
        source = "more epochs in its time" if ahead else "fewer epochs in its time"
    certain = abs(measured.points) > measured.half_width  # False without an interval
    return source if certain else f"{source}; may be chance"


_MANY_MORE = 1.1  # less than that, and a busy machine may have done it


def number_met(comparison: Comparison, record: ArmRecord) -> tuple[str, str]:
    """(verdict, reason) on whether an arm's top-1 is the paper's, which holds only at the paper's number of epochs."""
    curves = published(record.arm.name)
    assert curves, "asked for an arm without a published curve"
    budget = record.runs[0].config.get("budget") or {}
    if not comparison.on_imagenet:
        return NO_VERDICT, f"{comparison.images}, not ImageNet-1k"
    if budget.get("epochs") is None:
        return NO_VERDICT, "trained for hours, not for the paper's number of epochs (profile paper-epochs)"
    if not record.finished:
        return NO_VERDICT, record.state
    low = min(curve.last for curve in curves) - READING_ERROR_TOP1
    high = max(curve.last for curve in curves) + READING_ERROR_TOP1
    if record.top1.n < 2:
        return NO_VERDICT, "one seed: no spread to hold against the published number"
    half_width = _t95(record.top1.n - 1) * record.top1.sd / math.sqrt(record.top1.n)
    if low - half_width <= record.top1.mean <= high + half_width:
        return REPRODUCED, "within the reading error and the 95 % interval over seeds"
    above = record.top1.mean > high
    return NOT_REPRODUCED, f"{'above' if above else 'below'} the published range by more than its uncertainty"


def gap_text(measured: Gap | None) -> str:
    """'+1.20 ± 0.45 (n = 3 and 3)'; without an interval where a seed stands alone."""
    if measured is None:
        return units.MISSING
    n = f"n = {measured.seeds[0]} and {measured.seeds[1]}"
    if math.isnan(measured.half_width):
        return f"{units.signed(measured.points)} ({n}: no interval)"
    return f"{units.signed(measured.points)} ± {units.percent(measured.half_width)} ({n})"


def _finding(comparison: Comparison, claim: Claim) -> Finding:
    measured, gaps = gap(comparison, claim), published_gaps(claim.better, claim.worse)
    published_text = " / ".join(units.signed(points, 1) for points in gaps) or "not published"
    if gaps and not in_one_plot(claim.better, claim.worse):
        published_text += " (of different plots)"
    verdict, reason = _verdict(comparison, claim, measured)
    if verdict == REPRODUCED and gaps:
        reason += f"; {_size(measured, gaps)}"
    return Finding(claim.statement, verdict, reason, published_text, gap_text(measured))


def _verdict(comparison: Comparison, claim: Claim, measured: Gap | None) -> tuple[str, str]:
    obstacle = _obstacle(comparison, (claim.better, claim.worse))
    if obstacle:
        return NO_VERDICT, obstacle
    assert measured is not None
    if abs(measured.points) <= measured.half_width:
        return NO_VERDICT, "the gap is within its uncertainty"
    if measured.points < 0:
        return NOT_REPRODUCED, "the order is the other way round"
    return REPRODUCED, "the gap is above its uncertainty"


def _obstacle(comparison: Comparison, names: tuple[str, ...]) -> str:
    """Why these arms' records carry no verdict on the paper; empty where they do."""
    for name in names:
        record = comparison.find(name)
        if record is None:
            return f"no record of {arm(name).label}"
        if not record.finished:
            return f"{record.arm.label}: {record.state}"
    records = [record for record in comparison.arms if record.arm.name in names]
    if comparison.smoke:
        return mark(comparison)
    broken = [record.arm.label for record in records if any(breaches(run) for run in record.finished)]
    if broken:
        return f"outside the benchmark: {', '.join(broken)}"
    single = [record.arm.label for record in records if record.top1.n < 2]
    return f"one seed of {' and '.join(single)}" if single else ""


def _order_finding(comparison: Comparison) -> Finding:
    present = [name for name in PAPER_ORDER if (record := comparison.find(name)) and record.finished]
    seen = sorted(present, key=lambda name: -comparison.find(name).top1.mean)
    statement = "The order of the arms"
    published_text, measured = _order_text(PAPER_ORDER), _order_text(seen) if len(seen) > 1 else units.MISSING
    obstacle = _obstacle(comparison, PAPER_ORDER)
    if obstacle:
        return Finding(statement, NO_VERDICT, obstacle, published_text, measured)
    steps = [gap(comparison, Claim("", *pair)) for pair in itertools.pairwise(seen)]
    if any(step.points <= step.half_width for step in steps):
        return Finding(statement, NO_VERDICT, "neighbours lie within their uncertainty", published_text, measured)
    if seen == list(PAPER_ORDER):
        return Finding(statement, REPRODUCED, "every step is above its uncertainty", published_text, measured)
    return Finding(
        statement, NOT_REPRODUCED, "another order, every step above its uncertainty", published_text, measured
    )


def _order_text(names: tuple[str, ...] | list[str]) -> str:
    return " > ".join(arm(name).label for name in names)


def _size(measured: Gap, gaps: list[float]) -> str:
    error = math.sqrt(2) * READING_ERROR_TOP1
    if measured.points - measured.half_width > max(gaps) + error:
        return "it is larger than published"
    if measured.points + measured.half_width < min(gaps) - error:
        return "it is smaller than published"
    return "its size agrees with the published one"


def _welch_half_width(a: Spread, b: Spread) -> float:
    """Half of Welch's 95 % interval for a difference of means; NaN below two values each."""
    if min(a.n, b.n) < 2:
        return math.nan
    parts = a.sd**2 / a.n, b.sd**2 / b.n
    if sum(parts) == 0:
        return 0.0
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.n - 1) + parts[1] ** 2 / (b.n - 1))
    return _t95(math.floor(freedom)) * math.sqrt(sum(parts))


def _t95(freedom: int) -> float:
    """97.5 % quantile of Student's t, rounded up to the next smaller number of degrees in the table."""
    return _T95[max(degrees for degrees in _T95 if degrees <= max(1, freedom))]


# Any statistics book's table; written out because SciPy would be a dependency for these few numbers.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228} | {
    12: 2.179,
    15: 2.131,
    20: 2.086,
    30: 2.042,
    60: 2.000,
    120: 1.980,
}
