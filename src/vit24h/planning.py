"""`vit24h plan`: what a budget buys on this machine, found out before the day is spent. Must not know torch.

Measures (`engine/plan.py`), predicts (`prediction.py`), and says what sets the pace and what would lift it. That is the
content of a JSON file, without any path, from which `report/plan.py` makes tables and the figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit24h import paths
from vit24h.config import Config
from vit24h.errors import UserError
from vit24h.prediction import (
    Costs,
    SizeCost,
    Timeline,
    binding,
    hours_for,
    hours_to_each_size,
    median,
    predict,
    with_hours,
    workers_wanted,
)
from vit24h.records.folder import write_json
from vit24h.report.paper import deit_s_images_per_s, equivalent_hours, is_deit_s

if TYPE_CHECKING:
    from vit24h.engine.plan import Measurement, SizeMeasurement

_MINUTES_EACH = 1.0  # of measuring, for each configuration
_HOT, _COLD = 0.05, 0.5  # share of what was read that came from the disk
_GIB = 2**30

Progress = Callable[[str, int, int, int], None]  # (names of the arms, round, rounds, image size)


@dataclass(frozen=True)
class Question:
    """What is asked: the budget of the configurations, or hours, or epochs."""

    gpu_hours: float | None = None
    target_epochs: float | None = None


def plan(
    configs: Sequence[Config],
    question: Question,
    *,
    minutes: float | None = None,
    folder: Path | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Measure and predict.

    Args:
        configs: the runs to come. What several of them have in common, such as a model, is measured once.
        minutes: of measuring, for all together; None for about one each.
        folder: where a checkpoint is tried; None for where runs are written.

    Returns:
        The plan, as its JSON file holds it. Hours are hours; `images_per_s` of `together` is what training will do.

    Raises:
        UserError, GpuLost: as training would.
    """
    from vit24h.engine.plan import measure

    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(_measured_alike(config), []).append(config)
    sizes = {key: sorted({size for config in group for size in config.image_sizes}) for key, group in groups.items()}
    seconds_a_size = 60 * (minutes or _MINUTES_EACH * len(configs)) / sum(len(some) for some in sizes.values())
    measurements: dict[str, Measurement] = {}
    for key, group in groups.items():
        names = ", ".join(config.name for config in group)
        measurements[key] = measure(
            group[0],
            sizes[key],
            seconds=seconds_a_size * len(sizes[key]),
            folder=folder or paths.runs(),
            progress=lambda *turn, names=names: progress(names, *turn),
        )
    arms = [_arm(config, measurements[_measured_alike(config)], question) for config in configs]
    phases = ("train_hours", "evaluation_hours", "checkpoint_hours", "setup_hours", "wall_hours")
    return {
        "question": {"gpu_hours": question.gpu_hours, "target_epochs": question.target_epochs},
        "environment": next(iter(measurements.values())).environment,
        "arms": arms,
        "total": {phase: sum(arm["prediction"][phase] for arm in arms) for phase in phases},
        "paper_equivalent": _paper_equivalent(arms),
    }


def write_plan(path: Path, content: Mapping[str, Any]) -> None:
    """Raises UserError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise UserError(
            f"{path}: the plan cannot be written there ({error.strerror}): give --out another place"
        ) from error


def default_path(configs: Sequence[Config]) -> Path:
    """`runs/plan-combined.json`; of several configurations `runs/plan-full.json`, after the profile."""
    return paths.runs() / f"plan-{configs[0].name if len(configs) == 1 else configs[0].profile}.json"


def _measured_alike(config: Config) -> str:
    """Equal for configurations of which one measurement tells about all."""
    section = config.to_dict()
    optimizer = {key: section["optimizer"][key] for key in ("batch_size", "constant_tokens", "precision")}
    return json.dumps([section[key] for key in ("model", "data", "augmentation", "runtime")] + [optimizer])


def _arm(config: Config, measured: Measurement, question: Question) -> dict[str, Any]:
    sizes = {size: measured.sizes[size] for size in config.image_sizes}
    costs = _costs(sizes, measured, lambda size: median(size.together_s))
    # Were data always there. A loader that also takes the step's cores away would let it be slower than this.
    unhindered = _costs(sizes, measured, lambda size: min(median(size.step_s), median(size.together_s)))
    per_epoch = measured.samples_per_epoch
    config = _as_asked(config, costs, per_epoch, question)
    timeline = predict(config, costs, per_epoch)
    begins = hours_to_each_size(config, costs, per_epoch)
    return {
        "name": config.name,
        "profile": config.profile,
        "smoke": config.smoke,
        "config": {**config.to_dict(), "data": {**config.to_dict()["data"], "path": None}},
        "samples_per_epoch": per_epoch,
        "workers": measured.workers,
        **measured.facts,
        "measured": {
            "seconds": measured.measured_s,
            "rounds": measured.rounds,
            "sizes": [_size(config, size, measured) for size in sizes.values()],
            "evaluation_s": measured.evaluation_s,
            "evaluation_images_per_s": measured.environment["dataset"]["val_images"] / measured.evaluation_s,
            "checkpoint_s": measured.checkpoint_s,
            "checkpoint_bytes": measured.checkpoint_bytes,
            "setup_s": measured.setup_s,
            "page_cache": _page_cache(measured),
        },
        "prediction": {
            **_prediction(config, timeline),
            "hours_to_each_size": {str(size): hours for size, hours in begins.items()},
            "last_size_reached": not timeline.never_reached,
            "epochs_without_waiting": predict(config, unhindered, per_epoch).epochs,
        },
    }


def _as_asked(config: Config, costs: Costs, samples_per_epoch: int, question: Question) -> Config:
    if question.gpu_hours is not None:
        return with_hours(config, question.gpu_hours)
    if question.target_epochs is not None:
        return with_hours(config, hours_for(config, costs, samples_per_epoch, question.target_epochs))
    return config


def _costs(
    sizes: Mapping[int, SizeMeasurement], measured: Measurement, step_s: Callable[[SizeMeasurement], float]
) -> Costs:
    return Costs(
        tuple(SizeCost(size.image_size, size.batch_size, step_s(size), size.first_step_s) for size in sizes.values()),
        evaluation_s=measured.evaluation_s,
        checkpoint_s=measured.checkpoint_s or 0.0,
        setup_s=measured.setup_s,
    )


def _size(config: Config, size: SizeMeasurement, measured: Measurement) -> dict[str, Any]:
    batch = size.batch_size
    loader_s, step_s, together_s = median(size.loader_s), median(size.step_s), median(size.together_s)
    pace = binding(batch / loader_s, batch / step_s)
    return {
        "image_size": size.image_size,
        "batch_size": batch,
        "loader": {"images_per_s": batch / loader_s, "seconds": size.loader_s},
        "step": {"ms": 1e3 * step_s, "images_per_s": batch / step_s, "seconds": size.step_s},
        "together": {
            "images_per_s": batch / together_s,
            "data_wait_share": median(size.waiting),
            "share_of_the_slower": max(loader_s, step_s) / together_s,
            "seconds": size.together_s,
        },
        "first_step_s": size.first_step_s,
        "memory_bytes": size.memory_bytes,
        "memory_of": "GPU" if measured.environment["gpu"] is not None else "process",
        "sets_the_pace": pace,
        "would_lift_it": _advice(config, pace, batch / loader_s, batch / step_s, measured),
    }


def _advice(config: Config, pace: str, loader: float, step: float, measured: Measurement) -> str:
    """What would make a size faster, as far as loading goes."""
    environment, workers = measured.environment, measured.workers
    on_gpu = environment["gpu"] is not None
    if not workers:
        return "loader processes (runtime.workers=auto), so that the step need not wait while images are decoded"
    if pace == "step":
        return "nothing in loading" if on_gpu else "nothing in loading; a GPU"
    wanted, there_are = workers_wanted(loader, step, workers), environment["cpu"]["cores"] - (1 if on_gpu else 0)
    if wanted <= there_are:
        return f"runtime.workers={wanted}: there are the cores for it"
    ways = [f"about {wanted} CPU cores for workers, where there are {max(there_are, 1)}"]
    if environment["dataset"].get("packing") is None:
        ways.append("packed images (vit24h pack)")
    if on_gpu and config.augmentation.randaugment_ops and config.augmentation.randaugment_on == "cpu":
        ways.append("augmentation.randaugment_on=device")
    return "; ".join(ways)


def _prediction(config: Config, timeline: Timeline) -> dict[str, Any]:
    budget = config.budget
    return {
        "budget": {"hours": budget.hours, "epochs": budget.epochs, "steps": budget.steps, "counts": budget.counts},
        "epochs": timeline.epochs,
        "steps": timeline.steps,
        "train_hours": timeline.train_s / 3600,
        "evaluation_hours": timeline.eval_s / 3600,
        "evaluations": timeline.evaluations,
        "checkpoint_hours": timeline.checkpoint_s / 3600,
        "setup_hours": timeline.setup_s / 3600,
        "wall_hours": timeline.wall_s / 3600,
        "counted_hours": timeline.counted_s / 3600,
        "never_reached": list(timeline.never_reached),
        "stages": [
            {
                "image_size": stage.image_size,
                "begin_hours": stage.begin_s / 3600,
                "end_hours": stage.end_s / 3600,
                "begin_wall_hours": stage.begin_wall_s / 3600,
                "begin_epochs": stage.begin_epochs,
                "end_epochs": stage.end_epochs,
                "steps": stage.steps,
            }
            for stage in timeline.stages
        ],
    }


def _page_cache(measured: Measurement) -> dict[str, Any]:
    """Whether the loader was measured on images that memory held, and whether memory can hold them all."""
    disk = measured.disk
    read = disk.images * measured.image_bytes
    share = min(1.0, disk.from_disk_bytes / read) if disk.known and read else None
    dataset_gib = measured.image_bytes * measured.environment["dataset"]["train_images"] / _GIB
    memory_gib = measured.environment["memory_gib"]
    state = "unknown" if share is None else "hot" if share < _HOT else "cold" if share > _COLD else "mixed"
    return {
        "state": state,
        "share_from_disk": share,
        "images_read": disk.images,
        "dataset_gib": dataset_gib,
        "memory_gib": memory_gib,
        "fits_memory": dataset_gib < memory_gib,
    }


def _paper_equivalent(arms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many hours here are the authors' 24; where that has no meaning, why."""
    for arm in arms:
        model = arm["config"]["model"]
        at = next((size for size in arm["measured"]["sizes"] if size["image_size"] == model["image_size"]), None)
        if at is None or not is_deit_s(model):
            continue
        least, most = equivalent_hours(at["together"]["images_per_s"])
        return {
            "hours": [least, most],
            "of_the_authors_hours": 24,
            "arm": arm["name"],
            "images_per_s": at["together"]["images_per_s"],
            "authors_images_per_s": list(deit_s_images_per_s()),
        }
    return {"hours": None, "why_not": "none of these is the paper's DeiT-S at 224 px"}
