"""How a run learned: accuracy by epoch, and its pace at the full image size. Must not know: figures, tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from vit24h.records import Run
from vit24h.report.timing import time_by_size


def top1_by_epoch(runs: Sequence[Run]) -> dict[int, float]:
    """Mean top-1, percent, after each whole epoch that all of these runs evaluated."""
    by_epoch = [
        {whole[row["step"]]: row["top1"] for row in run.rows_of("eval") if row["step"] in whole}
        for run in runs
        for whole in [{row["step"]: row["epoch"] for row in run.rows_of("epoch") if row.get("complete")}]
    ]
    shared = set.intersection(*(set(one) for one in by_epoch)) if by_epoch else set()
    return {epoch: fmean(one[epoch] for one in by_epoch) for epoch in sorted(shared)}


def pace_at_full_size(run: Run) -> float | None:
    """Images a second in training at the model's own image size, waiting for data included."""
    full = run.config["model"]["image_size"]
    return next((time.images_per_s for time in time_by_size(run) if time.image_size == full), None)


def epoch_paces_at_full_size(run: Run) -> list[float]:
    """Images a second of each whole epoch that was trained at the model's own image size from its begin to its end."""
    paces, size_at_begin, full = [], None, run.config["model"]["image_size"]
    for row in run.rows:
        if row["event"] == "stage":
            size_at_begin = row["image_size"] if size_at_begin is None else size_at_begin
        elif row["event"] == "epoch":
            if size_at_begin == row["image_size"] == full and row.get("complete") and row.get("images_per_s"):
                paces.append(row["images_per_s"])
            size_at_begin = row["image_size"]
    return paces
