"""The paper's published curves, from `paper_figures/reference/paper_curves.csv`; how they were read off stands there.

The one source of published numbers in tables and figures. Must not know: records.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from vit24h import paths
from vit24h.config import load_config
from vit24h.errors import UserError
from vit24h.report.arms import arm

READING_ERROR_TOP1 = 0.5  # points; see the README beside the file
READING_ERROR_HOURS = 0.1
EPOCH_SAMPLES = 1_281_167 // 256 * 256  # crops in the authors' epoch (METHOD.md, repeated augmentation)
DEIT_S_EPOCH_HOURS = (1.15, 1.25)  # of DeiT-S at 224 px, between the points of its two curves (METHOD.md)


@dataclass(frozen=True)
class PublishedCurve:
    """One line of one of the paper's two plots."""

    plot: str  # 'locality' or 'curriculum'
    series: str
    hours: tuple[float, ...]
    top1: tuple[float, ...]  # percent

    @property
    def last(self) -> float:
        """Top-1 at the end of the curve, near 22 h: what the tables call the paper's number."""
        return self.top1[-1]

    @property
    def schedule(self) -> tuple[int, int, int] | None:
        """(initial size px, epochs a stage, step px) of an image-size curriculum."""
        found = re.search(r"(\d+)px/(\d+)ep/\+(\d+)px", self.series)
        return (int(found[1]), int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True)
class PublishedThroughput:
    """One epoch's length in the authors' best schedule, by image size."""

    image_size: int
    hours_per_epoch: float
    images_per_s: float


@cache
def published_curves() -> tuple[PublishedCurve, ...]:
    """All lines of both plots, in the file's order."""
    path = paths.notebooks() / "reference" / "paper_curves.csv"
    if not path.is_file():
        raise UserError(f"{path}: the paper's published curves are missing; restore the file from the repository")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = dict.fromkeys((row["figure"], row["series"]) for row in rows)
    return tuple(
        PublishedCurve(
            plot,
            series,
            tuple(float(row["train_hours"]) for row in rows if (row["figure"], row["series"]) == (plot, series)),
            tuple(float(row["top1_percent"]) for row in rows if (row["figure"], row["series"]) == (plot, series)),
        )
        for plot, series in lines
    )


def published(arm_name: str, plot: str | None = None) -> list[PublishedCurve]:
    """The arm's curves: none, one, or one from each plot."""
    return [
        curve
        for curve in published_curves()
        if curve.series == arm(arm_name).published and (plot is None or curve.plot == plot)
    ]


@cache
def published_epochs(arm_name: str) -> int | None:
    """Epochs that the arm had by the end of its published curve; None where it has none."""
    return load_config(f"paper/{arm_name}", profile="paper-epochs").budget.epochs if published(arm_name) else None


def published_gaps(better: str, worse: str) -> list[float]:
    """Differences of the two arms' last points, within one plot; across plots only where no plot has both."""
    pairs = [(b, w) for b in published(better) for w in published(worse)]
    within = [(b, w) for b, w in pairs if b.plot == w.plot]
    return [b.last - w.last for b, w in within or pairs]


def in_one_plot(better: str, worse: str) -> bool:
    """Whether one of the paper's plots has both arms: only there is nothing else known to differ."""
    return bool({curve.plot for curve in published(better)} & {curve.plot for curve in published(worse)})


def published_throughput() -> list[PublishedThroughput]:
    """Median epoch length and images/s at each size of the 32/5/32 run, whose curve has a point for every epoch.

    The first epoch is left out: it began with a cold disk cache.
    """
    curve = published("combined")[0]
    assert curve.schedule is not None
    initial, epochs_per_stage, step = curve.schedule
    by_size: dict[int, list[float]] = {}
    for epoch in range(1, len(curve.hours)):
        size = initial + step * (epoch // epochs_per_stage)
        by_size.setdefault(size, []).append(curve.hours[epoch] - curve.hours[epoch - 1])
    return [
        PublishedThroughput(size, median(hours), EPOCH_SAMPLES / (median(hours) * 3600))
        for size, hours in by_size.items()
    ]


def is_deit_s(model: Mapping[str, Any]) -> bool:
    """Whether a configuration's `model` section is the paper's DeiT-S, as far as its speed goes."""
    ours = load_config("paper/baseline").to_dict()["model"]
    return all(model.get(key) == ours[key] for key in _MAKING_THE_SPEED)


def deit_s_images_per_s() -> tuple[float, float]:
    """What the authors' machine trained DeiT-S on at 224 px, data loading included: (least, most), images a second."""
    fastest_h, slowest_h = DEIT_S_EPOCH_HOURS
    return EPOCH_SAMPLES / (slowest_h * 3600), EPOCH_SAMPLES / (fastest_h * 3600)


def equivalent_hours(images_per_s: float, hours: float = 24.0) -> tuple[float, float]:
    """Paper-equivalent time: how long this machine takes for what the authors' did in `hours`: (least, most), hours.

    By DeiT-S at 224 px, the one model and size that both are sure to have trained; the range is that of the authors'
    epochs. Results on different GPUs can be put side by side at equal such time, as far as one number can say it: a
    machine that is faster at 224 px need not be so to the same degree at 32 px.

    Args:
        images_per_s: of training DeiT-S at 224 px on this machine, waiting for data included, as the authors' is.

    Source: METHOD.md, "What the published curves say": an epoch of DeiT-S took them 1.15–1.25 h; an epoch is
    ⌊N/256⌋·256 crops of the N = 1,281,167 training images ("Recipe", repeated augmentation).
    """
    least, most = deit_s_images_per_s()
    return hours * least / images_per_s, hours * most / images_per_s


def equivalence_text(images_per_s: float) -> str:
    """Paper-equivalent time in words, for a machine that trains DeiT-S at 224 px on that many images a second."""
    return (
        f"Paper-equivalent time: the authors' 24 h are {_range(equivalent_hours(images_per_s))} h here, by DeiT-S at "
        f"224 px: {images_per_s:,.0f} images/s, where theirs were {_range(deit_s_images_per_s())}."
    )


def _range(numbers: tuple[float, float]) -> str:
    low, high = numbers
    digits = 0 if low >= 100 else 1 if low >= 10 else 2
    return f"{low:,.{digits}f}–{high:,.{digits}f}"


_MAKING_THE_SPEED = ("feed_forward", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
