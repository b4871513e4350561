"""Where the time of a run went: by phase, and by image size. From the clock in its log rows, nothing else.

The clock of a row counts from the start of the run, so what lies between two rows is their difference; it belongs to
the image size that was in force then. Waiting for data is recorded once an epoch; it is spread over the sizes that an
epoch saw in proportion to their training time. Compiling has rows of its own. Must not know: figures, tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean

from vit24h.records import Run

PHASES = ("steps", "waiting", "evaluation", "checkpoints", "setup", "lost")
PHASE_LABELS = {
    "steps": "training steps",
    "waiting": "waiting for data",
    "evaluation": "evaluation",
    "checkpoints": "checkpoints",
    "setup": "set-up",
    "lost": "lost to interruptions",
}


@dataclass
class TimeAtSize:
    """What a run did while it trained at one image size; seconds."""

    image_size: int  # pixels
    train_s: float = 0.0  # steps, waiting, and compiling
    compile_s: float = 0.0  # of these, where the step was compiled
    evaluation_s: float = 0.0
    checkpoints_s: float = 0.0
    setup_s: float = 0.0
    samples: int = 0
    steps: int = 0
    waiting_s: float = 0.0  # within the epochs that recorded it ...
    observed_s: float = 0.0  # ... whose training time is this

    @property
    def waiting_share(self) -> float:
        """Of the training time; NaN where no epoch ended at this size."""
        return self.waiting_s / self.observed_s if self.observed_s else math.nan

    @property
    def images_per_s(self) -> float:
        return self.samples / self.train_s if self.train_s else math.nan

    @property
    def images_per_s_without_waiting(self) -> float:
        """What the steps alone would reach, were data always there and nothing to compile."""
        return self.samples / self._steps_s if self._steps_s > 0 else math.nan

    @property
    def step_ms(self) -> float:
        """Milliseconds of a step, neither waiting nor compiling included."""
        return 1e3 * self._steps_s / self.steps if self.steps else math.nan

    @property
    def _steps_s(self) -> float:
        return self.train_s * (1 - self.waiting_share) - self.compile_s


@dataclass
class _Epoch:
    train_s: dict[int, float] = field(default_factory=dict)  # by image size


def time_by_size(run: Run) -> list[TimeAtSize]:
    """One entry for each image size, in the order of training. Empty without rows."""
    sizes: dict[int, TimeAtSize] = {}
    # What comes before the first stage begins, waiting for its first batch, is that stage's.
    size, epoch = next((row["image_size"] for row in run.rows_of("stage")), None), _Epoch()
    before = {"samples_seen": 0, "step": 0, "clock": {}}
    for row in run.rows:
        if row.get("clock") is None:
            continue
        size = size if size is not None else row["image_size"]
        here = sizes.setdefault(size, TimeAtSize(size))
        train_s = _between(before, row, "train_s")
        here.train_s += train_s
        here.evaluation_s += _between(before, row, "eval_s")
        here.checkpoints_s += _between(before, row, "checkpoint_s")
        here.setup_s += _between(before, row, "setup_s")
        here.samples += row["samples_seen"] - before["samples_seen"]
        here.steps += row["step"] - before["step"]
        epoch.train_s[size] = epoch.train_s.get(size, 0.0) + train_s
        if row["event"] == "epoch":
            _spread_waiting(sizes, epoch, row)
            epoch = _Epoch()
        elif row["event"] == "stage":
            size = row["image_size"]
        elif row["event"] == "compile":
            here.compile_s += row["compile_s"]
        before = row
    return [time for time in sizes.values() if time.samples]


def time_by_phase(run: Run) -> dict[str, float]:
    """Seconds of each of PHASES. Where an epoch did not end, its waiting is taken to be as that of the others."""
    if not run.rows:
        return dict.fromkeys(PHASES, 0.0)
    clock = next((row["clock"] for row in reversed(run.rows) if row.get("clock")), {})
    sizes = time_by_size(run)
    observed_s = sum(time.observed_s for time in sizes)
    share = sum(time.waiting_s for time in sizes) / observed_s if observed_s else 0.0
    train_s = clock.get("train_s", 0.0)
    return {
        "steps": train_s * (1 - share),
        "waiting": train_s * share,
        "evaluation": clock.get("eval_s", 0.0),
        "checkpoints": clock.get("checkpoint_s", 0.0),
        "setup": clock.get("setup_s", 0.0),
        "lost": clock.get("lost_s", 0.0),
    }


def samples_per_epoch(run: Run) -> int | None:
    return next((row["samples_per_epoch"] for row in run.rows_of("start") if "samples_per_epoch" in row), None)


def epochs_bought(run: Run, budget_s: float) -> tuple[float, bool]:
    """Epochs that `budget_s` of training holds at the speed of this record, and whether that is a lower bound.

    It is one where a curriculum by epochs would come to image sizes that the record never trained at: only the part up
    to there is counted. NaN without a measured size.
    """
    measured = {time.image_size: time for time in time_by_size(run)}
    per_epoch = samples_per_epoch(run)
    if not measured or not per_epoch:
        return math.nan, False
    epoch_s = {size: per_epoch / time.images_per_s for size, time in measured.items()}
    curriculum = run.config["curriculum"]
    final_size = run.config["model"]["image_size"]
    if curriculum.get("initial_size") is None:
        return (budget_s / epoch_s[final_size], False) if final_size in epoch_s else (math.nan, False)
    stages = range(curriculum["initial_size"], final_size, curriculum["size_step"])
    epochs, left_s = 0.0, budget_s
    for size in (*stages, final_size):
        if size not in epoch_s:
            return epochs, True
        if size == final_size:
            stage_s = left_s
        elif curriculum.get("epochs_per_stage") is not None:
            stage_s = min(left_s, curriculum["epochs_per_stage"] * epoch_s[size])
        else:
            stage_s = curriculum["budget_fraction_per_stage"] * budget_s
        epochs += stage_s / epoch_s[size]
        left_s -= stage_s
    return epochs, False


def mean_over(values: list[float]) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _between(before: dict, row: dict, phase: str) -> float:
    return row["clock"].get(phase, 0.0) - before["clock"].get(phase, 0.0)


def _spread_waiting(sizes: dict[int, TimeAtSize], epoch: _Epoch, row: dict) -> None:
    waited_s, epoch_s = row.get("data_wait_s"), row.get("epoch_s")
    if waited_s is None or not epoch_s:
        return
    for size, train_s in epoch.train_s.items():
        sizes[size].observed_s += train_s
        # The row's own ratio: after a resume its seconds may be those of a part of the epoch.
        sizes[size].waiting_s += train_s * min(1.0, waited_s / epoch_s)
