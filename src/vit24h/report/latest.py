"""Where a run stands: its result, or its last row while there is none. Must not know: figures, tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vit24h.records import Run
from vit24h.report import units


@dataclass(frozen=True)
class Latest:
    """What is known of a run by its record's end; None: not recorded (yet)."""

    epochs: float | None
    samples: int | None  # crops trained on
    train_s: float | None
    lost_s: float
    top1: float | None  # percent, of the last evaluation
    parameters: int | None
    macs: int | None  # multiply-accumulates of one image's forward pass
    val_images: int | None


def latest(run: Run) -> Latest:
    """From `result.json` where the run has one, else from its rows."""
    evaluations = run.rows_of("eval")
    starts = [*run.rows_of("start"), *run.rows_of("resume")]
    row: dict[str, Any] = next((row for row in reversed(run.rows) if row.get("clock")), {})
    start: dict[str, Any] = starts[0] if starts else {}
    evaluation: dict[str, Any] = evaluations[-1] if evaluations else {}
    known = {**start, **evaluation, **(run.result or {})}
    clock = known.get("clock") if run.result else row.get("clock")
    per_epoch, samples = start.get("samples_per_epoch"), row.get("samples_seen")
    return Latest(
        epochs=run.result["epochs"]
        if run.result
        else samples / per_epoch
        if samples and per_epoch
        else row.get("epoch"),
        samples=run.result["samples_seen"] if run.result else samples,
        train_s=(clock or {}).get("train_s"),
        lost_s=(clock or {}).get("lost_s", 0.0),
        top1=known.get("top1"),
        parameters=known.get("parameters"),
        macs=known.get("macs"),
        val_images=known.get("images"),
    )


def progress(run: Run) -> float:
    """Share of the budget that the record covers, 0 to 1."""
    if run.state == "finished":
        return 1.0
    budget = run.config.get("budget") or {}
    row = next((row for row in reversed(run.rows) if row.get("clock")), None)
    if row is None:
        return 0.0
    if budget.get("hours"):
        phases = ("train_s",) if budget.get("counts") != "all" else ("train_s", "eval_s", "checkpoint_s", "setup_s")
        return min(1.0, sum(row["clock"].get(phase, 0.0) for phase in phases) / (budget["hours"] * 3600))
    if budget.get("epochs"):
        return min(1.0, (latest(run).epochs or 0.0) / budget["epochs"])
    return min(1.0, row["step"] / budget["steps"]) if budget.get("steps") else 0.0


def status(run: Run) -> str:
    """In words: 'finished', 'unfinished, 42 % of its budget so far', 'failed after 3.2 h: the reason'."""
    if run.state == "finished":
        return "finished"
    if run.state == "unfinished":
        return f"unfinished, {100 * progress(run):.0f} % of its budget so far"
    reason = run.rows_of("end")[-1].get("message") or "no reason recorded"
    return f"failed after {units.duration(latest(run).train_s)} of training: {reason}"
