"""How a record stands to the rules of the benchmark: which it breaks, and the mark that it bears in every figure.

What the rules are is decided by `vit24h.records.verify`, for this as for everyone. Must not know: figures, tables.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from vit24h.records import Run
from vit24h.records.verify import Verification, verify
from vit24h.report.comparison import Comparison, is_drawn

SMOKE_MARK = "smoke run – not the paper's result"
DRAWN_MARK = "smoke run on drawn images – not the paper's result"


def breaches(run: Run) -> list[str]:
    """The rules this record breaks, in words; empty for a benchmark record. Being unfinished breaks none by itself."""
    return _verification(run).breaches(unfinished_counts=False)


def is_benchmark(run: Run) -> bool:
    """A finished record that breaks no rule: the only kind that carries a verdict on the paper's claims."""
    return _verification(run).holds


def mark(comparison: Comparison) -> str:
    """What a figure of these runs must say about them; empty where every record is a benchmark record."""
    if comparison.smoke:
        return DRAWN_MARK if all(is_drawn(run) for run in comparison.runs) else SMOKE_MARK
    reasons = _shared(breaches(run) for run in comparison.runs)
    return f"outside the benchmark: {'; '.join(reasons)}" if reasons else ""


def _verification(run: Run) -> Verification:
    written = tuple(path.stat().st_mtime_ns for path in sorted(run.path.iterdir()) if path.is_file())
    return _verified(run.path, written)


@functools.lru_cache(maxsize=1024)  # every table and figure asks
def _verified(path: Path, _written: tuple[int, ...]) -> Verification:
    return verify(path)


def _shared(lists: Iterable[list[str]]) -> list[str]:
    """All reasons, each once, in order of appearance."""
    return list(dict.fromkeys(reason for reasons in lists for reason in reasons))
