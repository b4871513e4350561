"""A plan (`vit24h plan`) as tables for a terminal and as a figure of its timeline. Must not know: how it was measured.

What it reads is the content of the plan's JSON file: `vit24h.planning` says what is in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from vit24h.errors import UserError
from vit24h.report import style, units
from vit24h.report.arms import arm as look_of
from vit24h.report.comparison import IMAGENET_IMAGES, machine_name
from vit24h.report.paper import equivalence_text
from vit24h.report.standing import SMOKE_MARK
from vit24h.report.style import PrintFigure
from vit24h.report.tables import Block, Table

Plan = Mapping[str, Any]

_UNDISTURBED = 0.95  # of the slower one's speed: what loader and step should reach together


def to_text(plan: Plan) -> str:
    """All of it for a terminal: what was measured, what is predicted, and what it means."""
    changes = size_changes(plan)
    parts = [measured(plan).to_text(), *([changes.to_text()] if changes.blocks else []), arms(plan).to_text()]
    return "\n\n".join([*parts, "\n".join(findings(plan))])


def measured(plan: Plan) -> Table:
    """Loader, step, and both together at each image size, for each arm."""
    columns = (
        "Image size",
        "Batch",
        "Loader (images/s)",
        "Step (ms)",
        "Step (images/s)",
        "Together (images/s)",
        "Waiting",
        "Pace set by",
        "First step",
        "Memory",
    )
    blocks = [
        Block(
            f"{_label(arm)} · measured for {units.duration(arm['measured']['seconds'])}, {arm['measured']['rounds']} "
            f"rounds · {arm['precision']}, {_count(arm['workers'], 'loader process', 'loader processes')}",
            tuple(_size_row(size) for size in arm["measured"]["sizes"]),
            tuple(_measured_notes(arm)),
        )
        for arm in plan["arms"]
    ]
    return Table(columns, tuple(blocks), text_columns=0)


def size_changes(plan: Plan) -> Table:
    """When each image size begins and ends, on the paper's axis of training time; for arms that change it."""
    columns = ("Arm", "Image size", "Begins", "At epoch", "Lasts", "Epochs")
    blocks = []
    for arm in plan["arms"]:
        if len(arm["measured"]["sizes"]) == 1:
            continue
        prediction = arm["prediction"]
        rows = [
            (
                _label(arm),
                f"{stage['image_size']} px",
                _hours(stage["begin_hours"]),
                f"{stage['begin_epochs']:.1f}",
                _hours(stage["end_hours"] - stage["begin_hours"]),
                f"{stage['end_epochs'] - stage['begin_epochs']:.1f}",
            )
            for stage in prediction["stages"]
        ]
        rows += [
            (_label(arm), f"{size} px", "never reached", units.MISSING, units.MISSING, units.MISSING)
            for size in prediction["never_reached"]
        ]
        blocks.append(Block(f"{_label(arm)}, {_budget(prediction['budget'])}", tuple(rows)))
    return Table(columns, tuple(blocks))


def arms(plan: Plan) -> Table:
    """What each arm gets and costs, and all of them together."""
    columns = ("Arm", "Epochs", "Were loading free", "Training", "Evaluation", "Checkpoints", "Wall clock", "Last size")
    rows = [_arm_row(arm) for arm in plan["arms"]]
    if len(plan["arms"]) > 1:
        total = plan["total"]
        phases = ("train_hours", "evaluation_hours", "checkpoint_hours", "wall_hours")
        rows.append(("All", units.MISSING, units.MISSING, *(_hours(total[phase]) for phase in phases), units.MISSING))
    heading = f"Predicted · {_machine(plan)} · {_images(plan)}"
    return Table(columns, (Block(heading, tuple(rows)),))


def findings(plan: Plan) -> list[str]:
    """What the numbers mean, a line each."""
    lines = []
    asked = plan["question"]
    for arm in plan["arms"]:
        prediction = arm["prediction"]
        if asked["target_epochs"] is not None:
            lines.append(
                f"{_label(arm)}: {prediction['epochs']:.1f} epochs take {_hours(prediction['counted_hours'])} of "
                "the budget."
            )
        lines += _never_reached(arm)
        if prediction["epochs_without_waiting"] > 1.02 * prediction["epochs"]:
            lines.append(
                f"{_label(arm)}: were loading free, {prediction['epochs_without_waiting']:.1f} epochs instead of "
                f"{prediction['epochs']:.1f}."
            )
        share = prediction["evaluation_hours"] / prediction["wall_hours"]
        lines.append(
            f"{_label(arm)}: evaluation, {_count(prediction['evaluations'], 'time')}, takes "
            f"{_hours(prediction['evaluation_hours'])} or {100 * share:.1f} % of the wall clock."
        )
    lines.append(_paper_equivalent(plan["paper_equivalent"]))
    lines += [_smoke_note()] if any(arm["smoke"] for arm in plan["arms"]) else []
    return lines


def timeline(plan: Plan) -> PrintFigure:
    """(a) Image size over the predicted hours of training; (b) what limits the speed at each size."""
    footer = [(f"Predicted by vit24h plan · {_machine(plan)} · {_images(plan)}", style.FAINT)]
    footer += [(_smoke_note(), style.WARNING)] if any(arm["smoke"] for arm in plan["arms"]) else []
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(2.9, footer)
        left, right = figure.subplots(1, 2)
        budgets = dict.fromkeys(_budget(arm["prediction"]["budget"]) for arm in plan["arms"])
        under = f", {next(iter(budgets))}" if len(budgets) == 1 else ""
        left.set_title(f"(a) Predicted image size{under}", color=style.FAINT)
        right.set_title("(b) Measured speed", color=style.FAINT)
        _draw_timeline(left, plan["arms"])
        _draw_speeds(right, plan["arms"])
    return figure


def save_figure(plan: Plan, beside: Path) -> tuple[Path, Path]:
    """Write the figure as PNG and PDF beside the plan's file, under its name.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        return timeline(plan).save(beside.parent, beside.stem)
    except OSError as error:
        raise UserError(f"{beside.parent}: the figure cannot be written there ({error.strerror})") from error


# -- tables ---------------------------------------------------------------------------------------------------------


def _size_row(size: Mapping[str, Any]) -> tuple[str, ...]:
    together = size["together"]
    return (
        f"{size['image_size']} px",
        units.count(size["batch_size"]),
        units.count(size["loader"]["images_per_s"]),
        f"{size['step']['ms']:.1f}",
        units.count(size["step"]["images_per_s"]),
        units.count(together["images_per_s"]),
        f"{100 * together['data_wait_share']:.0f} %",
        size["sets_the_pace"],
        f"+{units.duration(size['first_step_s'])}",
        f"{size['memory_bytes'] / 2**30:.1f} GiB",
    )


def _measured_notes(arm: Mapping[str, Any]) -> list[str]:
    found = arm["measured"]
    memory = "peak on the GPU" if found["sizes"][0]["memory_of"] == "GPU" else "of the training process"
    notes = [
        f"Together: loader and step as in training. Memory: {memory}.",
        f"Evaluation: {units.duration(found['evaluation_s'])} for all validation images, "
        f"{units.count(found['evaluation_images_per_s'])} images/s with raw and averaged weights.",
    ]
    if found["checkpoint_s"] is None:
        notes.append("Checkpoint: could not be written, so it is taken to cost nothing.")
    else:
        size = f"{found['checkpoint_bytes'] / 2**20:,.0f} MiB"
        notes.append(f"Checkpoint: {units.duration(found['checkpoint_s'])} for {size}.")
    notes.append(_page_cache_text(found["page_cache"]))
    for pace, group in itertools.groupby(found["sizes"], key=lambda size: size["sets_the_pace"]):
        sizes = list(group)
        worst = max(sizes, key=lambda size: size["step"]["images_per_s"] / size["loader"]["images_per_s"])
        at = _span([size["image_size"] for size in sizes])
        where = f" (at {worst['image_size']} px)" if len({size["would_lift_it"] for size in sizes}) > 1 else ""
        notes.append(f"At {at} the {pace} sets the pace. What would lift it{where}: {worst['would_lift_it']}.")
    slowed = [size for size in found["sizes"] if size["together"]["share_of_the_slower"] < _UNDISTURBED]
    if slowed:
        least = min(size["together"]["share_of_the_slower"] for size in slowed)
        notes.append(
            f"At {_span([size['image_size'] for size in slowed])} the two together are slower than the slower one "
            f"alone (down to {100 * least:.0f} % of it): "
            + ("they share cores." if arm["workers"] else "without loader processes they take turns.")
        )
    return notes


def _page_cache_text(cache: Mapping[str, Any]) -> str:
    if cache["state"] == "unknown":
        found = "Page cache: this system does not tell how much of the images came from the disk"
    else:
        words = {"hot": "held the images", "cold": "did not hold them", "mixed": "held some of them"}
        share = f"{100 * cache['share_from_disk']:.0f} % of {units.count(cache['images_read'])} images from the disk"
        found = f"Page cache: {words[cache['state']]} while the loader was measured ({share})"
    gib = cache["dataset_gib"]
    images = f"{gib:,.1f} GiB" if gib >= 1 else f"{1024 * gib:,.0f} MiB"
    room = f"{images} of images, {cache['memory_gib']:,.0f} GiB of memory"
    if not cache["fits_memory"]:
        return f"{found}; {room}: it cannot hold them all, and in training the disk is read in every epoch."
    if cache["state"] in ("cold", "mixed"):
        return f"{found}; {room}: they fit, so the loader may be faster from the second epoch on."
    return f"{found}; {room}."


def _arm_row(arm: Mapping[str, Any]) -> tuple[str, ...]:
    prediction = arm["prediction"]
    return (
        _label(arm),
        f"{prediction['epochs']:.1f}",
        f"{prediction['epochs_without_waiting']:.1f}",
        _hours(prediction["train_hours"]),
        _hours(prediction["evaluation_hours"]),
        _hours(prediction["checkpoint_hours"]),
        _hours(prediction["wall_hours"]),
        "reached" if prediction["last_size_reached"] else "never reached",
    )


def _never_reached(arm: Mapping[str, Any]) -> list[str]:
    prediction = arm["prediction"]
    if not prediction["never_reached"]:
        return []
    last = prediction["never_reached"][-1]
    begins = prediction["hours_to_each_size"].get(str(last))
    when = f" It would begin after {_hours(begins)} of training." if begins is not None else ""
    return [f"{_label(arm)}: {_span(prediction['never_reached'])} never reached.{when} (The authors' run never was.)"]


def _paper_equivalent(equivalent: Mapping[str, Any]) -> str:
    if equivalent["hours"] is None:
        return f"Paper-equivalent time: not told, because {equivalent['why_not']}."
    return equivalence_text(equivalent["images_per_s"])


def _label(arm: Mapping[str, Any]) -> str:
    return look_of(arm["name"]).label


def _budget(budget: Mapping[str, Any]) -> str:
    if budget["hours"] is not None:
        counted = "" if budget["counts"] == "train" else " of all phases"
        return f"budget {units.round_duration(budget['hours'] * 3600)}{counted}"
    unit = "epochs" if budget["epochs"] is not None else "steps"
    return f"budget {budget[unit]:,} {unit}"


def _hours(hours: float) -> str:
    return units.duration(hours * 3600)


def _count(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def _span(sizes: Sequence[int]) -> str:
    """'32 to 128 px'."""
    return f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px"


def _machine(plan: Plan) -> str:
    return machine_name(plan["environment"]) or "machine not recorded"


def _images(plan: Plan) -> str:
    dataset = plan["environment"]["dataset"]
    counts = (dataset["train_images"], dataset["val_images"])
    if counts == IMAGENET_IMAGES:
        return "ImageNet-1k"
    return f"{units.count(counts[0])} training and {units.count(counts[1])} validation images"


def _smoke_note() -> str:
    return f"{SMOKE_MARK[0].upper()}{SMOKE_MARK[1:]}."


# -- the figure -----------------------------------------------------------------------------------------------------


def _draw_timeline(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> None:
    longest_s = max(arm["prediction"]["train_hours"] for arm in arms) * 3600
    unit, factor = units.time_unit(longest_s)
    sizes = sorted({size["image_size"] for arm in arms for size in arm["measured"]["sizes"]})
    labels = []
    for place, arm in enumerate(arms):
        look = look_of(arm["name"])
        aside = (place - (len(arms) - 1) / 2) * min(0.022, 0.09 / max(1, len(arms) - 1)) * sizes[-1]
        stages = arm["prediction"]["stages"]
        times = [stage["begin_hours"] * 3600 / factor for stage in stages]
        end = arm["prediction"]["train_hours"] * 3600 / factor
        heights = [stage["image_size"] + aside for stage in stages]  # a hair beside the others, to hide none
        axes.step([*times, end], [*heights, heights[-1]], where="post", color=look.colour, linewidth=1.2)
        middles = [(begin + after) / 2 for begin, after in itertools.pairwise([*times, end])]
        axes.plot(middles, heights, look.marker, color=look.colour, markersize=3)
        text = f"{look.label}  {arm['prediction']['epochs']:.1f} epochs"
        labels.append((heights[-1], text, {"color": look.colour, "marker": look.marker}))
    axes.set_xlim(0, 1.02 * longest_s / factor)
    axes.set_ylim(0, 1.15 * sizes[-1])
    axes.yaxis.set_major_locator(FixedLocator(sizes))
    axes.set_xlabel(f"Training time ({_UNITS[unit]})")
    axes.set_ylabel("Image size (px)")
    style.end_labels(axes, labels, 2.3)


def _draw_speeds(axes: Axes, arms: Sequence[Mapping[str, Any]]) -> None:
    sizes, speeds = set(), []
    for arm in arms:
        look = look_of(arm["name"])
        at = [size["image_size"] for size in arm["measured"]["sizes"]]
        together, step, loader = (
            [size[what]["images_per_s"] for size in arm["measured"]["sizes"]] for what in ("together", "step", "loader")
        )
        colour = {"color": look.colour, "marker": look.marker}
        axes.plot(at, loader, color=style.FAINT, linestyle="--", linewidth=0.9, marker="_")
        axes.plot(at, step, **colour, linestyle=(0, (1, 1.2)), linewidth=0.9, markerfacecolor="white")
        axes.plot(at, together, **colour)
        sizes |= set(at)
        speeds += [*together, *step, *loader]
    axes.plot([], [], color=style.INK, marker="o", label="together")
    axes.plot([], [], color=style.INK, marker="o", linestyle=(0, (1, 1.2)), markerfacecolor="white", label="step alone")
    axes.plot([], [], color=style.FAINT, linestyle="--", marker="_", label="loader alone")
    axes.set_yscale("log")
    axes.set_ylim(min(speeds) / 1.5, max(speeds) * 1.5)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.count(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(0, 1.1 * max(sizes))
    axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    axes.set_xlabel("Image size (px)")
    axes.set_ylabel("Images/s")
    axes.legend(frameon=False, fontsize=6.5, loc="best")


_UNITS = {"h": "hours", "min": "minutes", "s": "seconds"}
