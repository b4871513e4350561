"""Quantities as a reader reads them: durations, counts, percentages. Must not know: records."""

from __future__ import annotations

import math

MISSING = "–"


def percent(value: float | None, digits: int = 2) -> str:
    """'43.52'; a dash where there is no value; 'NaN' where the record says NaN."""
    if value is None:
        return MISSING
    return "NaN" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 2) -> str:
    """'+3.20', with a true minus sign."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:+.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """'1,281,167'."""
    return MISSING if value is None or math.isnan(value) else f"{value:,.0f}"


def amount(value: float | None) -> str:
    """Three significant digits and a prefix: '22.1 M', '4.61 G', '812'."""
    if value is None or math.isnan(value):
        return MISSING
    for threshold, factor, prefix in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= threshold:
            return f"{_three_digits(value / factor)} {prefix}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Three significant digits: '24.0 h', '10.2 min', '43.1 s', '0 s'."""
    if seconds is None or math.isnan(seconds):
        return MISSING
    if seconds == 0:
        return "0 s"
    unit, factor = time_unit(seconds)
    return f"{_three_digits(seconds / factor)} {unit}"


def round_duration(seconds: float) -> str:
    """A duration that someone chose: '24 h', '90 min', '40 s'."""
    unit, factor = time_unit(seconds)
    return f"{seconds / factor:.3g} {unit}"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which that long a time is best read, and its seconds."""
    if seconds >= 2 * 3600:
        return "h", 3600.0
    return ("min", 60.0) if seconds >= 100 else ("s", 1.0)


def _three_digits(value: float) -> str:
    whole_digits = max(1, math.floor(math.log10(abs(value))) + 1) if value else 1
    return f"{value:.{max(0, 3 - whole_digits)}f}"
