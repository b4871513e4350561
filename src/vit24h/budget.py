"""The budget: what time was spent on, how far the run is, and when it is over.

`BudgetClock` adds up seconds by phase; `Position` counts samples. Neither knows models or schedules.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from vit24h.config import BudgetConfig

PHASES = ("setup", "train", "eval", "checkpoint")


@dataclass
class Position:
    """Where training is in the order of samples. An epoch is `samples_per_epoch` samples."""

    samples_per_epoch: int
    epoch: int = 0  # epochs completed
    sample: int = 0  # samples consumed of the epoch now running
    step: int = 0  # batches consumed
    samples_seen: int = 0  # samples consumed in all

    def advance(self, batch_size: int, *, last_of_epoch: bool) -> None:
        """Count one batch. The tail of an epoch that is shorter than a batch is dropped by the loader."""
        self.step += 1
        self.samples_seen += batch_size
        self.sample += batch_size
        if last_of_epoch:
            self.epoch += 1
            self.sample = 0

    @property
    def epoch_ended(self) -> bool:
        """True between the last step of an epoch and the first of the next."""
        return self.sample == 0 and self.epoch > 0

    @property
    def epochs(self) -> float:
        """Epochs done, with the fraction of the one now running."""
        return self.epoch + self.sample / self.samples_per_epoch

    def state_dict(self) -> dict[str, int]:
        return asdict(self)


class BudgetClock:
    """Seconds by phase against a budget of hours, epochs or steps.

    The clock always runs in exactly one phase, `setup` to begin with. `with clock.phase("eval"):` stops the phase
    around it and starts it again afterwards. Phases are told apart with the device synchronised, so work that was
    only queued is counted where it was queued.

    Args:
        budget: the limit, and which phases its hours count.
        now: a monotonic clock in seconds.
        synchronize: waits for the device's queue to empty.
    """

    def __init__(
        self,
        budget: BudgetConfig,
        *,
        now: Callable[[], float] = time.monotonic,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        self._budget = budget
        self._now = now
        self._synchronize = synchronize
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._lost_s = 0.0
        self._phase = "setup"
        self._since = now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as `name`, and nothing else."""
        assert name in PHASES, name
        outer = self._phase
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def seconds(self) -> dict[str, float]:
        """`setup_s`, `train_s`, `eval_s`, `checkpoint_s`, `lost_s`, and their sum `wall_s`, up to now.

        Time between a stop and the next start is in none of them.
        """
        running = self._now() - self._since
        parts = {
            f"{name}_s": spent + (running if name == self._phase else 0.0) for name, spent in self._seconds.items()
        }
        parts["lost_s"] = self._lost_s
        return {**parts, "wall_s": sum(parts.values())}

    @property
    def counted_s(self) -> float:
        """Seconds that the budget counts so far."""
        seconds = self.seconds()
        return seconds["train_s"] if self._budget.counts == "train" else sum(seconds[f"{name}_s"] for name in PHASES)

    def progress(self, *, epochs: float, steps: int, counted_s: float | None = None) -> float:
        """The fraction of the budget that is spent: 0 at the start, 1 or more when it is over.

        Args:
            counted_s: the seconds that hours are compared with; now's unless given.
        """
        if self._budget.hours is not None:
            return (self.counted_s if counted_s is None else counted_s) / (self._budget.hours * 3600)
        if self._budget.epochs is not None:
            return epochs / self._budget.epochs
        return steps / self._budget.steps

    def expired(self, *, epochs: float, steps: int, counted_s: float | None = None) -> bool:
        return self.progress(epochs=epochs, steps=steps, counted_s=counted_s) >= 1

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: the seconds of each phase up to now."""
        return self.seconds()

    def load_state_dict(self, state: Mapping[str, Any], *, lost_s: float) -> None:
        """Continue a checkpoint's clock. Seconds of this process's set-up so far are added to it.

        Args:
            lost_s: what the stopped process had run since that checkpoint: work that has to be done again.
        """
        for name in PHASES:
            self._seconds[name] += state[f"{name}_s"]
        self._lost_s = state["lost_s"] + lost_s

    def _switch(self, phase: str) -> None:
        self._synchronize()
        now = self._now()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now
