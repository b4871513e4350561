"""What a budget buys, from what a step, an evaluation and a checkpoint were measured to cost: a run walked through
without training. And the other way round: the hours that a number of epochs takes.

Pure functions of a configuration and seconds. Must not know: torch, clocks, files, how the seconds were measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vit24h import schedules
from vit24h.config import BudgetConfig, Config

_HOUR_S = 3600.0
_ROUNDING = 1e-9  # of an epoch, of a budget: a border is reached when it is reached but for rounding


@dataclass(frozen=True)
class SizeCost:
    """What training at one image size takes."""

    image_size: int  # pixels
    batch_size: int  # images a step
    step_s: float  # seconds of a step with the wait for its batch, once all runs smoothly
    first_step_s: float = 0.0  # seconds that the first step at this size takes more: choosing kernels, compiling


@dataclass(frozen=True)
class Costs:
    """What a run is made of, in seconds."""

    sizes: tuple[SizeCost, ...]
    evaluation_s: float = 0.0  # raw and averaged weights, all validation images
    checkpoint_s: float = 0.0
    setup_s: float = 0.0

    def at(self, image_size: int) -> SizeCost:
        return next(cost for cost in self.sizes if cost.image_size == image_size)


@dataclass(frozen=True)
class Stage:
    """Training at one image size, from one border to the next."""

    image_size: int
    begin_s: float  # of training, the time axis of the paper
    end_s: float
    begin_wall_s: float  # of all that the run does
    begin_epochs: float
    end_epochs: float
    steps: float


@dataclass(frozen=True)
class Timeline:
    """A run as predicted. Seconds by phase as the clock of a run has them; fractions of a step are kept."""

    stages: tuple[Stage, ...]
    never_reached: tuple[int, ...]  # sizes of the curriculum for which the budget does not last
    epochs: float
    steps: float
    train_s: float
    eval_s: float
    checkpoint_s: float
    setup_s: float
    evaluations: int
    counted_s: float  # what a budget in hours counts, when it is over; the last evaluation comes after that

    @property
    def wall_s(self) -> float:
        return self.train_s + self.eval_s + self.checkpoint_s + self.setup_s


def with_hours(config: Config, hours: float) -> Config:
    """The same configuration under a budget of that many hours; which phases they count stays."""
    return replace(config, budget=BudgetConfig(hours=hours, epochs=None, steps=None, counts=config.budget.counts))


def predict(config: Config, costs: Costs, samples_per_epoch: int) -> Timeline:
    """Walk through the run that `config` describes, from one thing that happens to the next.

    Args:
        costs: of every image size of `config`.
        samples_per_epoch: crops in an epoch, before the tail that fills no batch is left out.
    """
    walk = _Walk(config, costs, samples_per_epoch)
    while walk.progress() < 1 - _ROUNDING:
        walk.go_on()
    return walk.end()


def hours_for(config: Config, costs: Costs, samples_per_epoch: int, epochs: float) -> float:
    """The hours to give as `budget.hours` so that a run holds `epochs` epochs.

    Where the stages are fractions of the budget each grows with it, so the hours are looked for by halving.
    """
    if config.curriculum.budget_fraction_per_stage is None:
        budget = replace(config.budget, hours=None, epochs=epochs, steps=None)
        return predict(replace(config, budget=budget), costs, samples_per_epoch).counted_s / _HOUR_S

    def epochs_in(hours: float) -> float:
        return predict(with_hours(config, hours), costs, samples_per_epoch).epochs

    low, high = 0.0, 1.0
    while epochs_in(high) < epochs:
        low, high = high, 2 * high
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if epochs_in(middle) >= epochs else (middle, high)
    return high


def hours_to_each_size(config: Config, costs: Costs, samples_per_epoch: int) -> dict[int, float]:
    """When each image size would begin if the budget lasted: hours of training, by pixels.

    For a curriculum by epochs, whose sizes a budget may never reach. One by fractions of the budget reaches them all.
    """
    curriculum, budget = config.curriculum, config.budget
    if curriculum.epochs_per_stage is not None:
        growing = len(config.image_sizes) - 1
        budget = replace(budget, hours=None, epochs=growing * curriculum.epochs_per_stage + 1, steps=None)
    timeline = predict(replace(config, budget=budget), costs, samples_per_epoch)
    return {stage.image_size: stage.begin_s / _HOUR_S for stage in timeline.stages}


def binding(loader_images_per_s: float, step_images_per_s: float) -> Literal["loader", "step"]:
    """Which of the two, each measured alone, is the slower one and so sets the pace."""
    return "loader" if loader_images_per_s < step_images_per_s else "step"


def workers_wanted(loader_images_per_s: float, step_images_per_s: float, workers: int) -> int:
    """Loader processes, each with a core of its own, that would keep up with the step."""
    return math.ceil(max(workers, 1) * step_images_per_s / loader_images_per_s - _ROUNDING)


def median(values: Sequence[float]) -> float:
    """Of one quantity, measured in several rounds."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@dataclass
class _Walk:
    """Where the run is. Everything between two of its events is a straight line."""

    config: Config
    costs: Costs
    samples_per_epoch: int
    epoch: int = 0  # completed
    share: float = 0.0  # of the epoch now running
    steps: float = 0.0
    train_s: float = 0.0
    eval_s: float = 0.0
    checkpoint_s: float = 0.0
    evaluations: int = 0
    evaluated: bool = False  # with the weights as they are now
    since_checkpoint_s: float = 0.0
    cost: SizeCost | None = None  # of the stage now running
    begun: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # training s, wall s, epochs, steps at its begin
    stages: list[Stage] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        return self.epoch + self.share

    @property
    def wall_s(self) -> float:
        return self.costs.setup_s + self.train_s + self.eval_s + self.checkpoint_s

    @property
    def counted_s(self) -> float:
        return self.train_s if self.config.budget.counts == "train" else self.wall_s

    def progress(self) -> float:
        """The fraction of the budget that is spent."""
        budget = self.config.budget
        if budget.hours is not None:
            return self.counted_s / (budget.hours * _HOUR_S)
        return self.epochs / budget.epochs if budget.epochs is not None else self.steps / budget.steps

    def go_on(self) -> None:
        """To the next thing that happens, and do it."""
        size = self._image_size()
        if self.cost is None or size != self.cost.image_size:
            self._begin_stage(size)
            return
        cost, config = self.cost, self.config
        steps_per_epoch = self.samples_per_epoch // cost.batch_size
        checkpoint_every_s = 60 * config.runtime.checkpoint_minutes
        steps = min(
            (1 - self.share) * steps_per_epoch,
            (self._next_border() - self.progress()) * self._steps_in_the_budget(steps_per_epoch),
            (checkpoint_every_s - self.since_checkpoint_s) / cost.step_s,
        )
        steps = max(steps, _ROUNDING * steps_per_epoch)
        self.steps += steps
        self.share += steps / steps_per_epoch
        self._train(steps * cost.step_s)
        if self.share >= 1 - _ROUNDING:
            self._end_epoch()
        if self.since_checkpoint_s >= checkpoint_every_s - 1e-6:
            self._save()

    def end(self) -> Timeline:
        """As a run ends: saved and evaluated."""
        counted_s = self.counted_s
        if self.since_checkpoint_s > 0:
            self._save()
        if not self.evaluated:
            self._evaluate()
        self._end_stage()
        reached = {stage.image_size for stage in self.stages}
        return Timeline(
            stages=tuple(self.stages),
            never_reached=tuple(size for size in self.config.image_sizes if size not in reached),
            epochs=self.epochs,
            steps=self.steps,
            train_s=self.train_s,
            eval_s=self.eval_s,
            checkpoint_s=self.checkpoint_s,
            setup_s=self.costs.setup_s,
            evaluations=self.evaluations,
            counted_s=counted_s,
        )

    def _image_size(self) -> int:
        curriculum, final_size = self.config.curriculum, self.config.model.image_size
        if curriculum.initial_size is None:
            return final_size
        by_epochs = curriculum.epochs_per_stage is not None
        return schedules.image_size(
            self.epochs if by_epochs else self.progress(),
            initial_size=curriculum.initial_size,
            size_step=curriculum.size_step,
            stage_length=curriculum.epochs_per_stage if by_epochs else curriculum.budget_fraction_per_stage,
            final_size=final_size,
        )

    def _next_border(self) -> float:
        """The progress at which the next stage begins, where stages are fractions of the budget; else its end."""
        fraction = self.config.curriculum.budget_fraction_per_stage
        if fraction is None:
            return 1.0
        return min(1.0, fraction * (math.floor(self.progress() / fraction + _ROUNDING) + 1))

    def _steps_in_the_budget(self, steps_per_epoch: int) -> float:
        """Steps at the present size that would take the progress from 0 to 1."""
        budget = self.config.budget
        if budget.hours is not None:
            return budget.hours * _HOUR_S / self.cost.step_s
        return budget.epochs * steps_per_epoch if budget.epochs is not None else budget.steps

    def _begin_stage(self, image_size: int) -> None:
        if self.cost is not None:
            self._end_stage()
            self._save()
        self.cost = self.costs.at(image_size)
        self.begun = (self.train_s, self.wall_s, self.epochs, self.steps)
        self._train(self.cost.first_step_s)

    def _end_stage(self) -> None:
        begin_s, begin_wall_s, begin_epochs, begin_steps = self.begun
        self.stages.append(
            Stage(
                image_size=self.cost.image_size,
                begin_s=begin_s,
                end_s=self.train_s,
                begin_wall_s=begin_wall_s,
                begin_epochs=begin_epochs,
                end_epochs=self.epochs,
                steps=self.steps - begin_steps,
            )
        )

    def _end_epoch(self) -> None:
        self.epoch, self.share = self.epoch + 1, 0.0
        every = self.config.evaluation.every_epochs
        if every and self.epoch % every == 0:
            self._evaluate()

    def _train(self, seconds: float) -> None:
        self.train_s += seconds
        self.since_checkpoint_s += seconds
        self.evaluated = False

    def _evaluate(self) -> None:
        self.eval_s += self.costs.evaluation_s
        self.since_checkpoint_s += self.costs.evaluation_s
        self.evaluations += 1
        self.evaluated = True

    def _save(self) -> None:
        self.checkpoint_s += self.costs.checkpoint_s
        self.since_checkpoint_s = 0.0
