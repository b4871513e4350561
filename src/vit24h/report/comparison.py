"""Which runs may stand side by side, and what each arm's seeds say together.

Runs are comparable when they share suite, profile, machine, images and kind of budget. Anything else goes into another
comparison: another panel of a figure, another block of a table. Means and spreads are over finished seeds only; what is
unfinished is shown as such and averaged with nothing. Must not know: figures, tables, the rules of the benchmark.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from vit24h.records import Run
from vit24h.report import units
from vit24h.report.arms import Arm, arm, order

IMAGENET_IMAGES = (1_281_167, 50_000)  # training, validation


@dataclass(frozen=True)
class Spread:
    """Values of one quantity over seeds."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation; NaN below two values, for one seed has no spread."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan


@dataclass(frozen=True)
class ArmRecord:
    """The seeds of one arm within a comparison."""

    arm: Arm
    runs: tuple[Run, ...]

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == "finished")

    @property
    def others(self) -> tuple[Run, ...]:
        """Unfinished and failed."""
        return tuple(run for run in self.runs if run.state != "finished")

    def spread(self, quantity: Callable[[Run], float | None]) -> Spread:
        """`quantity` over the finished seeds that have it."""
        values = (quantity(run) for run in self.finished)
        return Spread(tuple(float(value) for value in values if value is not None))

    @property
    def top1(self) -> Spread:
        return self.spread(lambda run: run.result["top1"])

    @property
    def state(self) -> str:
        """'finished', 'unfinished', ... where all seeds agree, else a count of each: '2 finished, 1 failed'."""
        states = [run.state for run in self.runs]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        return states[0] if len(counts) == 1 else ", ".join(f"{count} {state}" for state, count in counts.items())


@dataclass(frozen=True)
class Comparison:
    """Runs that may stand side by side."""

    runs: tuple[Run, ...]

    @property
    def arms(self) -> tuple[ArmRecord, ...]:
        """In the order of the tables."""
        by_name = sorted(self.runs, key=lambda run: (order(run.arm), run.seed))
        return tuple(ArmRecord(arm(name), tuple(runs)) for name, runs in groupby(by_name, key=lambda run: run.arm))

    def find(self, name: str) -> ArmRecord | None:
        return next((record for record in self.arms if record.arm.name == name), None)

    def only(self, names: Iterable[str]) -> Comparison:
        """The same comparison with these arms alone."""
        wanted = set(names)
        return Comparison(tuple(run for run in self.runs if run.arm in wanted))

    @property
    def profile(self) -> str:
        return profile_of(self.runs[0])

    @property
    def smoke(self) -> bool:
        return any(is_smoke(run) for run in self.runs)

    @property
    def machine(self) -> str:
        return next((name for run in self.runs if (name := machine_of(run))), "machine not recorded")

    @property
    def on_imagenet(self) -> bool:
        """Every run was trained and evaluated on ImageNet-1k, so the paper's numbers may share its axes."""
        return all(image_counts(run) == IMAGENET_IMAGES for run in self.runs if run.environment)

    @property
    def images(self) -> str:
        """The data in words: 'ImageNet-1k', or counts."""
        for run in self.runs:
            dataset = run.environment.get("dataset") or {}
            if dataset:
                if image_counts(run) == IMAGENET_IMAGES:
                    return "ImageNet-1k"
                train, val, classes = (dataset.get(key) for key in ("train_images", "val_images", "classes"))
                drawn = "drawn images: " if is_drawn(run) else ""
                return (
                    f"{drawn}{units.count(train)} training and {units.count(val)} validation images, {classes} classes"
                )
        return "images not recorded"

    @property
    def budget(self) -> str:
        """In words; where arms have their own (epochs), each."""
        by_budget: dict[str, list[str]] = {}
        for record in self.arms:
            by_budget.setdefault(budget_of(record.runs[0]), []).append(record.arm.label)
        if len(by_budget) == 1:
            return f"budget {next(iter(by_budget))}"
        return "budgets: " + "; ".join(f"{budget} ({', '.join(labels)})" for budget, labels in by_budget.items())

    @property
    def budget_hours(self) -> float | None:
        """Where a figure's budget line stands on the axis of training hours; None where no such line exists."""
        budget = self.runs[0].config.get("budget", {})
        return budget.get("hours") if budget.get("counts") == "train" else None

    @property
    def seeds(self) -> str:
        """Finished seeds in words: '3 seeds', '1 to 3 seeds', 'no finished seed'."""
        counts = [len(record.finished) for record in self.arms if record.finished]
        if not counts:
            return "no finished seed"
        low, high = min(counts), max(counts)
        return f"{low} to {high} seeds" if low < high else f"{high} seed{'s' if high > 1 else ''}"

    @property
    def heading(self) -> str:
        return f"profile {self.profile} · {self.machine}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before comparing these runs with each other."""
        notes = []
        for record in self.arms:
            differing = _differing_keys([run.config for run in record.runs], ignore=("seed",))
            if differing:
                notes.append(f"{record.arm.label}: its seeds differ in {', '.join(differing)}")
        differing = _differing_keys(
            [record.runs[0].config for record in self.arms], ignore=("seed", "name", "model", "curriculum", "budget")
        )
        if differing:
            notes.append(f"arms differ in {', '.join(differing)}")
        gits = [environment.get("git") or {} for run in self.runs for environment in _environments(run)]
        commits = {commit for git in gits if (commit := git.get("commit"))}
        if len(commits) > 1:
            notes.append(f"made by {len(commits)} versions of the code: {', '.join(sorted(c[:7] for c in commits))}")
        return tuple(notes)


def comparisons(runs: Iterable[Run]) -> list[Comparison]:
    """Sort runs into comparisons, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault((*_suite_and_budget(run), machine_of(run), _fingerprint(run)), []).append(run)
    return [Comparison(tuple(group)) for group in groups.values()]


def profile_of(run: Run) -> str:
    return str(run.config.get("profile") or "none")


def is_smoke(run: Run) -> bool:
    return bool(run.config.get("smoke"))


def machine_of(run: Run) -> str | None:
    """'NVIDIA H200', 'Intel Xeon, 2 cores', and where it went on elsewhere both: 'NVIDIA A100, then NVIDIA H200'."""
    machines = dict.fromkeys(machine for environment in _environments(run) if (machine := machine_name(environment)))
    return ", then ".join(machines) or None


def is_drawn(run: Run) -> bool:
    """Trained on the images that the program draws for its smoke mode."""
    return bool((run.config.get("data") or {}).get("synthetic"))


def image_counts(run: Run) -> tuple[int | None, int | None]:
    dataset = run.environment.get("dataset") or {}
    return dataset.get("train_images"), dataset.get("val_images")


def budget_of(run: Run) -> str:
    """'24 h', '10 min', '30 epochs', '400 steps'."""
    budget = run.config.get("budget") or {}
    if budget.get("hours") is not None:
        duration = units.round_duration(budget["hours"] * 3600)
        return duration if budget.get("counts") == "train" else f"{duration} of all phases"
    for unit in ("epochs", "steps"):
        if budget.get(unit) is not None:
            return f"{budget[unit]} {unit}"
    return "not recorded"


def _environments(run: Run) -> list[dict[str, Any]]:
    """What the run began on, and what it went on with after each stop."""
    environments = [run.environment]
    for row in run.rows_of("resume"):
        environments.append(run.environment | (row.get("environment_changes") or {}))
    return environments


def machine_name(environment: Mapping[str, Any]) -> str | None:
    """'NVIDIA H200', '2 × NVIDIA H200' or 'Intel Xeon, 2 cores', from the content of an `environment.json`."""
    gpu, cpu = environment.get("gpu"), environment.get("cpu")
    processes = environment.get("processes") or 1
    if gpu and gpu.get("name"):
        return f"{processes} × {gpu['name']}" if processes > 1 else str(gpu["name"])
    if cpu and cpu.get("model"):
        model = re.sub(r"\((R|TM|tm|r)\)|\bCPU\b|\bProcessor\b|@.*", "", str(cpu["model"]))
        cores = cpu.get("cores")
        machine = " ".join(model.split()) + (f", {cores} core{'s' if cores != 1 else ''}" if cores else "")
        return f"{machine}, {processes} processes" if processes > 1 else machine
    return None


def _suite_and_budget(run: Run) -> tuple[Any, ...]:
    budget = run.config.get("budget") or {}
    kind = next((unit for unit in ("hours", "epochs", "steps") if budget.get(unit) is not None), None)
    # Hours must be equal to be compared; epochs and steps may be an arm's own, as in profile paper-epochs.
    return (run.suite, profile_of(run), is_smoke(run), kind, budget.get("hours"), budget.get("counts"))


def _fingerprint(run: Run) -> tuple[Any, ...]:
    dataset = run.environment.get("dataset") or {}
    return (dataset.get("fingerprint"), *image_counts(run))


def _differing_keys(configs: list[Mapping[str, Any]], ignore: tuple[str, ...]) -> list[str]:
    """Dotted keys whose values are not the same everywhere; what only changes speed and where data lie is left out."""
    flat = [_flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    skip = (*ignore, "runtime", "data.path", "profile")
    return [
        key
        for key in keys
        if not any(key == skipped or key.startswith(f"{skipped}.") for skipped in skip)
        and any(config.get(key) != flat[0].get(key) for config in flat)
    ]


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
