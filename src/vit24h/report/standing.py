"""How a record stands to the rules of the benchmark: which it breaks, and the mark that it bears in every figure.

The rules (BENCHMARK: ImageNet-1k, one GPU, 24 hours of training) are read off the record alone. This is the one place
where the report decides it. Must not know: figures, tables.
"""

from __future__ import annotations

from collections.abc import Iterable

from vit24h.records import Run
from vit24h.report import units
from vit24h.report.comparison import IMAGENET_IMAGES, Comparison, budget_of, image_counts, is_drawn, is_smoke

BUDGET_HOURS = 24
SMOKE_MARK = "smoke run – not the paper's result"
DRAWN_MARK = "smoke run on drawn images – not the paper's result"


def breaches(run: Run) -> list[str]:
    """The rules this record breaks, in words; empty for a benchmark record. Being unfinished breaks none by itself."""
    found = ["smoke run on drawn images" if is_drawn(run) else "smoke run"] if is_smoke(run) else []
    if not run.environment:
        return [*found, "its environment is not recorded"]
    counts = image_counts(run)
    if counts != IMAGENET_IMAGES:
        found.append(f"{' + '.join(units.count(images) for images in counts)} images, not ImageNet-1k's")
    budget = run.config.get("budget") or {}
    if budget.get("hours") != BUDGET_HOURS:
        found.append(f"budget {budget_of(run)}, not {BUDGET_HOURS} h")
    if not run.environment.get("gpu"):
        found.append("no GPU")
    if (run.environment.get("processes") or 1) != 1:
        found.append(f"{run.environment['processes']} processes, not one GPU")
    return found + (_breaches_of_result(run) if run.result else [])


def is_benchmark(run: Run) -> bool:
    """A finished record that breaks no rule: the only kind that carries a verdict on the paper's claims."""
    return run.state == "finished" and not breaches(run)


def mark(comparison: Comparison) -> str:
    """What a figure of these runs must say about them; empty where every record is a benchmark record."""
    if comparison.smoke:
        return DRAWN_MARK if all(is_drawn(run) for run in comparison.runs) else SMOKE_MARK
    reasons = _shared(breaches(run) for run in comparison.runs)
    return f"outside the benchmark: {'; '.join(reasons)}" if reasons else ""


def _breaches_of_result(run: Run) -> list[str]:
    assert run.result is not None
    found = []
    counted_s = _counted_seconds(run)
    # A step that was under way when the time was up is finished: allow it a minute.
    if counted_s is not None and counted_s > BUDGET_HOURS * 3600 + 60:
        found.append(f"{units.duration(counted_s)} of the counted phases, more than {BUDGET_HOURS} h")
    val_images = image_counts(run)[1]
    if run.result.get("images") != val_images:
        found.append(f"evaluated on {units.count(run.result.get('images'))} of {units.count(val_images)} images")
    evaluations = run.rows_of("eval")
    if not evaluations:
        found.append("no evaluation in its log")
    elif evaluations[-1].get("top1") != run.result.get("top1"):
        found.append("its result is not the last evaluation of its log")
    return found


def _counted_seconds(run: Run) -> float | None:
    clock = (run.result or {}).get("clock") or {}
    phases = ("train_s",) if (run.config.get("budget") or {}).get("counts") != "all" else _ALL_PHASES
    return sum(clock.get(phase, 0.0) for phase in phases) if clock else None


_ALL_PHASES = ("setup_s", "train_s", "eval_s", "checkpoint_s")


def _shared(lists: Iterable[list[str]]) -> list[str]:
    """All reasons, each once, in order of appearance."""
    return list(dict.fromkeys(reason for reasons in lists for reason in reasons))
