"""Records as figures. Each function draws one and returns it; `PrintFigure.save` writes it.

Comparisons never share axes: each has a panel of its own. The paper's published curves share the axes of records made
on ImageNet-1k and have a panel of their own beside all others. Dashed: unfinished, 'so far'. Dotted with hollow
markers: published. Must not know: tables, notebooks.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from vit24h.records import Run
from vit24h.report import style, timing, units, verdicts
from vit24h.report.arms import ARMS, Arm, arm, order
from vit24h.report.comparison import ArmRecord, Comparison
from vit24h.report.latest import latest, progress
from vit24h.report.paper import (
    READING_ERROR_TOP1,
    PublishedCurve,
    in_one_plot,
    published,
    published_gaps,
    published_throughput,
)
from vit24h.report.source import NO_RECORDS
from vit24h.report.standing import mark
from vit24h.report.style import PrintFigure

LOCALITY_ARMS = ("baseline", "localvit", "locality")
CURRICULUM_ARMS = ("baseline", "locality", "curriculum", "combined")  # and every other arm with a curriculum


def accuracy_over_time(groups: Sequence[Comparison]) -> PrintFigure:
    """Top-1 over training time, all arms."""
    with mpl.rc_context(style.STYLE):
        if not groups:
            return _nothing_to_draw()
        figure, panels = _panels(groups, height=3.0, columns=_columns(groups))
        for axes, group in zip(panels, groups, strict=True):
            _draw_accuracy(axes, group, 2.5)
    return figure


def locality(groups: Sequence[Comparison]) -> PrintFigure:
    """Top-1 over training time for DeiT-S, LocalViT-S and locality, with the paper's locality plot."""
    with mpl.rc_context(style.STYLE):
        groups = _with_arms(groups, LOCALITY_ARMS)
        figure, panels = _panels(groups, height=2.8, paper=not _on_imagenet(groups), columns=_columns(groups))
        _draw_accuracy_and_published(panels, groups, "locality", 2.2)
    return figure


def curriculum(groups: Sequence[Comparison]) -> PrintFigure:
    """Top-1 over training time for the image-size schedules, with the paper's curriculum plot; image size below."""
    with mpl.rc_context(style.STYLE):
        groups = _with_arms(groups, CURRICULUM_ARMS, curricula=True)
        figure, panels = _panels(groups, height=4.0, paper=not _on_imagenet(groups), columns=_columns(groups))
        pairs = [_split(axes) for axes in panels]
        _draw_accuracy_and_published([above for above, _ in pairs], groups, "curriculum", 2.3)
        for (_, below), group in zip(pairs, groups, strict=False):
            _draw_sizes(below, group, _published_beside(group, "curriculum"))
        if len(pairs) > len(groups):
            _draw_published_sizes(pairs[-1][1])
        for above, _ in pairs:
            above.set_xlabel("")
            above.tick_params(labelbottom=False)
    return figure


def time_spent(groups: Sequence[Comparison]) -> PrintFigure:
    """Where each arm's time went, by phase."""
    with mpl.rc_context(style.STYLE):
        if not groups:
            return _nothing_to_draw()
        bars = max(len(group.arms) for group in groups)
        figure, panels = _panels(groups, height=0.75 + 0.27 * bars, top=0.45, columns=1)
        for axes, group in zip(panels, groups, strict=True):
            _draw_time_spent(axes, group)
            axes.set_ylim(len(group.arms) - bars - 0.5, len(group.arms) - 0.5)
        _legend_on_top(figure, panels)
    return figure


def throughput(groups: Sequence[Comparison]) -> PrintFigure:
    """Images a second at each image size, what the steps alone would reach, and the paper's from its plot."""
    with mpl.rc_context(style.STYLE):
        figure, panels = _panels(groups, height=2.7, paper=not _on_imagenet(groups), top=0.2)
        for axes, group in zip(panels, groups, strict=False):
            _draw_throughput(axes, group)
        if len(panels) > len(groups):
            axes = panels[-1]
            sizes = {point.image_size for point in published_throughput()}
            speeds = [point.images_per_s for point in published_throughput()]
            _finish_throughput(axes, [_draw_published_throughput(axes)], sizes, speeds)
        _legend_on_top(figure, panels)
    return figure


def gaps(groups: Sequence[Comparison]) -> PrintFigure:
    """The claims as differences of top-1: in these records with their interval, and as published."""
    with mpl.rc_context(style.STYLE):
        if not groups:
            return _nothing_to_draw()
        height = 0.55 + 0.36 * len(verdicts.CLAIMS)
        figure, panels = _panels(groups, height=height, paper=not _on_imagenet(groups), top=0.45)
        for axes, group in zip(panels, groups, strict=False):
            aside = _BESIDE if group.on_imagenet else 0.0
            if group.on_imagenet:
                _draw_published_gaps(axes, -aside)
            _draw_gaps(axes, group, aside)
            _finish_gaps(axes)
        if len(panels) > len(groups):
            _draw_published_gaps(panels[-1], 0.0)
            _finish_gaps(panels[-1])
        _legend_on_top(figure, panels, columns=2)
    return figure


# Panels


def _panels(
    groups: Sequence[Comparison], *, height: float, paper: bool = False, top: float = 0.0, columns: int = 2
) -> tuple[PrintFigure, list[Axes]]:
    """A figure with one panel a comparison, and one more for the paper where that is wanted.

    The footer names profile, machine, images, budget and standing of every comparison.

    Args:
        height: of one row of panels, inches.
        top: room above them for a legend, inches.
    """
    footer = []
    for letter, group in zip(string.ascii_lowercase, groups, strict=False):
        name = f"({letter}) " if len(groups) > 1 else ""
        footer.append((f"{name}{group.heading} · {group.images} · {group.budget} · {group.seeds}", style.FAINT))
        footer += [(mark(group), style.WARNING)] if mark(group) else []
    if len(groups) > 1:
        footer.append(("The panels differ in profile, machine, images or budget: not to be compared.", style.WARNING))
    if not groups:
        footer.append((NO_RECORDS.replace("`", ""), style.FAINT))
    headings = [group.heading for group in groups]
    # Where that tells them not apart, the budget does.
    titles = [group.budget if headings.count(group.heading) > 1 else group.heading for group in groups]
    count = len(groups) + paper
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = style.new_figure(top + rows * height, footer)
    grid = figure.add_gridspec(rows, columns)
    panels = [figure.add_subplot(grid[index // columns, index % columns]) for index in range(count)]
    for letter, axes, title in zip(string.ascii_lowercase, panels, titles, strict=False):
        if count > 1:
            axes.set_title(f"({letter}) {title}" if len(groups) > 1 else "These records", color=style.FAINT)
    if paper:
        panels[-1].set_title("Paper: ImageNet-1k, read off its plots", color=style.FAINT)
    return figure, panels


def _split(axes: Axes) -> tuple[Axes, Axes]:
    """Two panels in the place of one, the lower one for image sizes, with a common axis of time."""
    figure, grid = axes.get_figure(), axes.get_subplotspec().subgridspec(2, 1, height_ratios=(2.3, 1))
    above = figure.add_subplot(grid[0])
    below = figure.add_subplot(grid[1], sharex=above)
    above.set_title(axes.get_title(loc="left"), color=style.FAINT)
    axes.remove()
    return above, below


def _nothing_to_draw() -> PrintFigure:
    figure = style.new_figure(0.8)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, NO_RECORDS.replace("`", ""), ha="center", va="center", color=style.FAINT, transform=axes.transAxes
    )
    return figure


def _legend_on_top(figure: PrintFigure, panels: Sequence[Axes], columns: int = 3) -> None:
    handles = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=columns, frameon=False, fontsize=7)


def _with_arms(groups: Sequence[Comparison], names: Sequence[str], *, curricula: bool = False) -> list[Comparison]:
    """The comparisons with these arms alone, and those with an image-size curriculum; without the then empty ones."""
    chosen = []
    for group in groups:
        more = {run.arm for run in group.runs if curricula and run.config["curriculum"]["initial_size"] is not None}
        chosen.append(group.only({*names, *more}))
    return [group for group in chosen if group.runs]


def _columns(groups: Sequence[Comparison]) -> int:
    """Of panels of curves: the labels of unfinished runs are too long for two side by side."""
    return 1 if any(record.others for group in groups for record in group.arms) else 2


def _on_imagenet(groups: Sequence[Comparison]) -> bool:
    return any(group.on_imagenet for group in groups)


# Accuracy over time


def _draw_accuracy_and_published(
    panels: Sequence[Axes], groups: Sequence[Comparison], plot: str, height: float
) -> None:
    for axes, group in zip(panels, groups, strict=False):
        _draw_accuracy(axes, group, height, _published_beside(group, plot))
    if len(panels) > len(groups):
        axes = panels[-1]
        curves = [curve for known in ARMS for curve in published(known.name, plot)]
        axes.set_ylim(0, 1.08 * max(max(curve.top1) for curve in curves))
        style.end_labels(axes, [_draw_published(axes, curve, 3600.0) for curve in curves], height)
        _label_axes(axes, "h", "Top-1 (%)")


def _published_beside(group: Comparison, plot: str) -> list[PublishedCurve]:
    """The paper's curves of these arms, where they may share the axes."""
    return [curve for record in group.arms for curve in published(record.arm.name, plot) if group.on_imagenet]


def _longest_s(group: Comparison, curves: Sequence[PublishedCurve]) -> float:
    """Seconds that the axis of training time must hold."""
    trained = [row["clock"]["train_s"] for run in group.runs for row in run.rows if row.get("clock")]
    return max([1.0, (group.budget_hours or 0) * 3600, *trained, *(curve.hours[-1] * 3600 for curve in curves)])


def _draw_accuracy(axes: Axes, group: Comparison, height: float, curves: Sequence[PublishedCurve] = ()) -> None:
    longest_s = _longest_s(group, curves)
    unit, factor = units.time_unit(longest_s)
    labels = []
    for record in group.arms:
        labels += _draw_arm(axes, record, factor)
    labels += [_draw_published(axes, curve, factor, paper=True) for curve in curves]
    _draw_budget_line(axes, group, factor, named=True)
    axes.set_xlim(0, 1.04 * longest_s / factor)
    highest = max([y for y, _, _ in labels if not math.isnan(y)], default=0.0)
    highest = max([highest, *(line.get_ydata().max() for line in axes.lines if len(line.get_ydata()) > 2)])
    axes.set_ylim(0, 1.12 * (highest or 1.0))  # nothing evaluated yet, or nothing right: any axis will do
    _draw_chance(axes, group)
    style.end_labels(axes, labels, height)
    images = max((latest(run).val_images or 0 for run in group.runs), default=0)
    _label_axes(axes, unit, f"Top-1 (%) on {units.count(images)} images" if images else "Top-1 (%)")


def _draw_arm(axes: Axes, record: ArmRecord, factor: float) -> list[tuple[float, str, dict]]:
    """Finished seeds as their mean with a band of ± one standard deviation; every other seed as a line of its own."""
    labels = []
    look = {"color": record.arm.colour, "marker": record.arm.marker}
    curves = [_points(run, factor) for run in record.finished]
    curves = [curve for curve in curves if len(curve[0])]
    if curves:
        times, mean, sd = _mean_curve(curves)
        axes.plot(times, mean, markevery=_marker_places(record.arm, len(times)), **look)
        if len(curves) > 1:
            axes.fill_between(times, mean - sd, mean + sd, color=record.arm.colour, alpha=0.18, linewidth=0)
        spread = f" ± {record.top1.sd:.1f}" if record.top1.n > 1 else ""
        labels.append((mean[-1], f"{record.arm.label}  {record.top1.mean:.1f}{spread}", look))
    for run in record.others:
        times, top1 = _points(run, factor)
        seed = f" seed {run.seed}" if len(record.runs) > 1 else ""
        end = "failed" if run.state == "failed" else f"so far ({100 * progress(run):.0f} %)"
        dashed = look | {"linestyle": "--", "linewidth": 1.0, "markerfacecolor": "white"}
        if len(times):
            axes.plot(times, top1, markevery=_marker_places(record.arm, len(times)), **dashed)
            if run.state == "failed":
                axes.plot(times[-1:], top1[-1:], marker="x", markersize=7, color=style.WARNING, linestyle="none")
            value = f"  {top1[-1]:.1f}"
        else:
            value = f"  {units.MISSING}"  # not evaluated yet
        labels.append((top1[-1] if len(top1) else 0.0, f"{record.arm.label}{seed}{value} {end}", dashed))
    return labels


def _draw_published(
    axes: Axes, curve: PublishedCurve, factor: float, *, paper: bool = False
) -> tuple[float, str, dict]:
    known = next(known for known in ARMS if known.published == curve.series)
    look = {"color": known.colour, "marker": known.marker, "linestyle": ":", "linewidth": 1.1}
    look |= {"markerfacecolor": "white", "markersize": 3.2}
    times = np.array(curve.hours) * 3600 / factor
    axes.plot(times, curve.top1, markevery=_marker_places(known, len(times)), **look)
    name = known.label.removeprefix("Combined ")  # a schedule's own name, as the paper writes it
    return curve.last, f"{name}{', paper' if paper else ''}  {curve.last:.1f}", look


def _points(run: Run, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """(training time in units of `factor` seconds, top-1) at every evaluation whose top-1 is a number."""
    points = np.array([point for point in run.curve() if not math.isnan(point[1])], dtype=float).reshape(-1, 2)
    return points[:, 0] * 3600 / factor, points[:, 1]


def _mean_curve(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(times, mean, sample standard deviation) over seeds, at the times of the first seed that all of them cover.

    Between two evaluations a seed's curve is taken to be straight. The last point is the mean of the last points, so
    that a line ends at its arm's result.
    """
    times = curves[0][0]
    if len(curves) == 1:
        return times, curves[0][1], np.zeros_like(times)
    first, last = max(t[0] for t, _ in curves), min(t[-1] for t, _ in curves)
    inner = times[(times >= first) & (times < last)]
    at = np.array([[*np.interp(inner, t, top1), top1[-1]] for t, top1 in curves])
    end = np.mean([t[-1] for t, _ in curves])
    return np.array([*inner, end]), at.mean(axis=0), at.std(axis=0, ddof=1)


def _marker_places(arm: Arm, points: int) -> list[int]:
    """About seven markers a line, always one at its end, not at the same places for every arm."""
    step = max(1, points // 7)
    offset = order(arm.name)[0] % step
    return sorted({*range(offset, points, step), points - 1})


def _draw_budget_line(axes: Axes, group: Comparison, factor: float, *, named: bool = False) -> None:
    if group.budget_hours is None:
        return
    at = group.budget_hours * 3600 / factor
    axes.axvline(at, color=style.FAINT, linewidth=0.8, linestyle=(0, (6, 2, 1, 2)), zorder=0.5)
    if named:
        where = {"xy": (at, 1), "xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "fontsize": 6.5}
        axes.annotate(group.budget, xytext=(-3, -1), ha="right", va="top", color=style.FAINT, **where)


def _draw_chance(axes: Axes, group: Comparison) -> None:
    """Where guessing would be, if that can be told from zero."""
    classes = next((c for run in group.runs if (c := (run.environment.get("dataset") or {}).get("classes"))), None)
    low, high = axes.get_ylim()
    if classes and 100 / classes > 0.03 * (high - low):
        axes.axhline(100 / classes, color=style.FAINT, linewidth=0.6, linestyle=(0, (1, 3)), zorder=0.5)
        where = {"xy": (0, 100 / classes), "xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        axes.annotate("chance", xytext=(3, 1), va="bottom", fontsize=6, color=style.FAINT, **where)


def _label_axes(axes: Axes, unit: str, y: str) -> None:
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Training time ({_UNITS[unit]})")
    axes.set_ylabel(y)


_UNITS = {"h": "hours", "min": "minutes", "s": "seconds"}


# Image size over time


def _draw_sizes(axes: Axes, group: Comparison, curves: Sequence[PublishedCurve]) -> None:
    unit, factor = units.time_unit(_longest_s(group, curves))
    sizes = set()
    for place, record in enumerate(group.arms):
        run = (record.finished or record.runs)[0]
        stages = [(row["clock"]["train_s"] / factor, row["image_size"]) for row in run.rows_of("stage")]
        end = max((row["clock"]["train_s"] for row in run.rows if row.get("clock")), default=0.0) / factor
        sizes |= {size for _, size in stages}
        _draw_steps(axes, record.arm, stages, end, place, len(group.arms), "-" if record.finished else "--")
    _draw_budget_line(axes, group, factor)
    _finish_sizes(axes, sizes, unit)


def _draw_published_sizes(axes: Axes) -> None:
    """The sizes of the 32/5/32 run, whose curve has a point for every epoch."""
    curve = published("combined")[0]
    initial, epochs_per_stage, step = curve.schedule
    starts = [0.0, *curve.hours[epochs_per_stage - 1 : -1 : epochs_per_stage]]
    stages = [(start, initial + step * number) for number, start in enumerate(starts)]
    known = next(known for known in ARMS if known.published == curve.series)
    _draw_steps(axes, known, stages, curve.hours[-1], 0, 1, ":")
    axes.annotate(f"{known.label} only", (0.03, 0.9), xycoords="axes fraction", va="top", fontsize=6.5)
    _finish_sizes(axes, {size for _, size in stages}, "h")


def _draw_steps(
    axes: Axes, arm: Arm, stages: list[tuple[float, int]], end: float, place: int, arms: int, line: str
) -> None:
    if not stages:
        return
    span = max(size for _, size in stages)
    # Arms share sizes: each is drawn a hair beside the other, so that none hides another.
    aside = _aside(place, arms, 0.03 * span, 0.1 * span)
    times = [time for time, _ in stages] + [end]
    values = [size + aside for _, size in stages]
    axes.step(times, [*values, values[-1]], where="post", color=arm.colour, linestyle=line, linewidth=1.1)
    share = (place + 1) / (arms + 1)  # of a stage: markers of arms that share it stand one after another
    marked = [a + share * (b - a) for a, b in itertools.pairwise(times)]
    axes.plot(marked, values, arm.marker, color=arm.colour, markersize=2.6)


def _aside(place: int, arms: int, step: float, most: float) -> float:
    """How far beside its value the arm at `place` is drawn: `step` from its neighbours, `most` from first to last."""
    return (place - (arms - 1) / 2) * min(step, most / max(1, arms - 1))


def _finish_sizes(axes: Axes, sizes: set[int], unit: str) -> None:
    axes.yaxis.set_major_locator(FixedLocator(sorted(sizes)[:: max(1, math.ceil(len(sizes) / 7))]))
    axes.set_ylim(0, 1.15 * max(sizes, default=1))
    _label_axes(axes, unit, "Image size (px)")


# Time


def _draw_time_spent(axes: Axes, group: Comparison) -> None:
    records = list(reversed(group.arms))
    totals, told = [], []
    for record in records:
        runs = record.finished or record.runs[:1]
        phases = [timing.time_by_phase(run) for run in runs]
        totals.append({phase: np.mean([one[phase] for one in phases]) for phase in timing.PHASES})
        told.append(all(run.rows_of("epoch") for run in runs))  # waiting is recorded once an epoch
    longest = max(sum(total.values()) for total in totals)
    unit, factor = units.time_unit(longest)
    left = np.zeros(len(records))
    for phase in timing.PHASES:
        widths = np.array([total[phase] for total in totals]) / factor
        face, hatch = _PHASE_LOOKS[phase]
        axes.barh(
            range(len(records)),
            widths,
            left=left,
            height=0.62,
            color=face,
            hatch=hatch,
            edgecolor=style.INK,
            linewidth=0.5,
            label=timing.PHASE_LABELS[phase],
        )
        left += widths
    for place, (end, total) in enumerate(zip(left, totals, strict=True)):
        waiting = 100 * total["waiting"] / max(total["waiting"] + total["steps"], 1e-9)
        share = f"{waiting:.1f} % of training was waiting" if told[place] else "waiting not recorded yet"
        text = f"{units.duration(end * factor)};  {share}"
        axes.annotate(text, (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=6.5)
    axes.set_yticks(range(len(records)), [_label_with_state(record) for record in records])
    axes.set_xlim(0, longest / factor * 1.5)
    axes.grid(visible=False)
    axes.set_xlabel(f"Wall-clock time ({_UNITS[unit]})")


def _label_with_state(record: ArmRecord) -> str:
    if record.finished:
        return record.arm.label
    return f"{record.arm.label}\n({'failed' if record.runs[0].state == 'failed' else 'so far'})"


_PHASE_LOOKS = {
    "steps": ("#4D4D4D", ""),
    "waiting": ("#FFFFFF", "//////"),
    "evaluation": ("#A6A6A6", ""),
    "checkpoints": ("#E3E3E3", "...."),
    "setup": ("#FFFFFF", ""),
    "lost": ("#9A3324", ""),
}


def _draw_throughput(axes: Axes, group: Comparison) -> None:
    labels, seen, speeds, records = [], set(), [], group.arms
    for place, record in enumerate(records):
        by_size: dict[int, list[timing.TimeAtSize]] = {}
        for run in record.finished or record.runs[:1]:
            for time in timing.time_by_size(run):
                by_size.setdefault(time.image_size, []).append(time)
        if not by_size:
            continue
        sizes = sorted(by_size)
        seen |= by_size.keys()
        real = [timing.mean_over([time.images_per_s for time in by_size[size]]) for size in sizes]
        alone = [timing.mean_over([time.images_per_s_without_waiting for time in by_size[size]]) for size in sizes]
        look = {"color": record.arm.colour, "marker": record.arm.marker, "linestyle": "-" if record.finished else "--"}
        # Arms share sizes: each is drawn a few points beside the other, so that none hides another.
        aside = ScaledTranslation(_aside(place, len(records), 5, 18) / 72, 0, axes.get_figure().dpi_scale_trans)
        look["zorder"] = 2 + 1 / len(sizes)  # one size is one marker: no line may hide it
        axes.plot(sizes, alone, transform=axes.transData + aside, **(look | _HOLLOW))
        axes.plot(sizes, real, transform=axes.transData + aside, **look)
        labels.append((real[-1], record.arm.label if record.finished else f"{record.arm.label} so far", look))
        speeds += [speed for speed in (*real, *alone) if not math.isnan(speed)]
    if group.on_imagenet:
        labels.append(_draw_published_throughput(axes))
        seen |= {point.image_size for point in published_throughput()}
        speeds += [point.images_per_s for point in published_throughput()]
    axes.plot([], [], color=style.INK, marker="o", label="as trained, waiting for data included")
    axes.plot([], [], **({"color": style.INK, "marker": "o", "label": "steps alone"} | _HOLLOW))
    _finish_throughput(axes, labels, seen, speeds)


def _draw_published_throughput(axes: Axes) -> tuple[float, str, dict]:
    points = published_throughput()
    known = next(known for known in ARMS if known.published == published("combined")[0].series)
    look = {"color": known.colour, "marker": known.marker, "linestyle": ":", "linewidth": 1.1}
    look |= {"markerfacecolor": "white", "markersize": 3.2}
    axes.plot([point.image_size for point in points], [point.images_per_s for point in points], **look)
    return points[-1].images_per_s, f"{known.label}, paper", look


def _finish_throughput(
    axes: Axes, labels: list[tuple[float, str, dict]], sizes: set[int], speeds: Sequence[float]
) -> None:
    axes.set_yscale("log")
    low, high = min(speeds, default=1.0), max(speeds, default=1.0)
    middle, span = math.sqrt(low * high), max(1.6 * high / low, 8.0)  # a plateau must look like one
    axes.set_ylim(middle / math.sqrt(span), middle * math.sqrt(span))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.count(value)))
    axes.yaxis.set_minor_locator(NullLocator())
    if sizes:
        axes.set_xlim(0, 1.15 * max(sizes))
        axes.xaxis.set_major_locator(FixedLocator(sorted(sizes)))
    axes.set_xlabel("Image size (px)")
    axes.set_ylabel("Images/s in training")
    style.end_labels(axes, labels, 2.0)


_HOLLOW = {"linestyle": (0, (1, 1.2)), "linewidth": 0.9, "markerfacecolor": "white"}


# Claims


def _draw_gaps(axes: Axes, group: Comparison, aside: float) -> None:
    """The gaps of these records, `aside` above their claim's place."""
    for place, claim in enumerate(reversed(verdicts.CLAIMS)):
        measured = verdicts.gap(group, claim)
        if measured is None:
            _note_at_zero(axes, place + aside, "no finished record of both")
            continue
        single = math.isnan(measured.half_width)
        axes.errorbar(
            measured.points,
            place + aside,
            xerr=None if single else measured.half_width,
            fmt="s" if single else "o",
            color=style.INK,
            markersize=4.5,
            elinewidth=1.2,
            capsize=3,
            label="these records, one seed: no interval" if single else "these records, 95 % interval over seeds",
        )


def _draw_published_gaps(axes: Axes, aside: float) -> None:
    for place, claim in enumerate(reversed(verdicts.CLAIMS)):
        if not published_gaps(claim.better, claim.worse):
            _note_at_zero(axes, place + aside, "not published")
        plots = "" if in_one_plot(claim.better, claim.worse) else " in different plots"
        for points in published_gaps(claim.better, claim.worse):
            axes.errorbar(
                points,
                place + aside,
                xerr=math.sqrt(2) * READING_ERROR_TOP1,
                fmt="^" if plots else "D",
                color=style.FAINT,
                markerfacecolor="white",
                markersize=4,
                elinewidth=0.8,
                capsize=2,
                label=f"published{plots}, with reading error",
            )


def _note_at_zero(axes: Axes, place: float, text: str) -> None:
    where = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (0, place), fontsize=6, color=style.FAINT, **where)


def _finish_gaps(axes: Axes) -> None:
    claims = list(reversed(verdicts.CLAIMS))
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(range(len(claims)), [_claim_label(claim) for claim in claims])
    axes.set_ylim(-0.6, len(claims) - 0.4)
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Difference of final top-1 (points)")


_BESIDE = 0.16  # of a place: ours above, the published below, where they share the axes


def _claim_label(claim: verdicts.Claim) -> str:
    return f"{arm(claim.better).label} −\n{arm(claim.worse).label}"
