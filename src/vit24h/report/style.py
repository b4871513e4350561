"""How figures look: one style for all, sized for print. Must not know: records.

Figures are made without pyplot, so that drawing them changes no global state and needs no display.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, DrawingArea, HPacker, TextArea

WIDTH = 6.5  # inches: the text width of a page
PRINT_DPI = 300
SCREEN_DPI = 144

INK = "#222222"
FAINT = "#777777"
HAIRLINE = "#D9D9D9"
WARNING = "#9A3324"

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "vit24h",
}


class PrintFigure(Figure):
    """A figure that a notebook shows by itself, and that saves itself for print."""

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `name`.png and `name`.pdf; the same records give the same bytes."""
        png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
        with mpl.rc_context(STYLE):
            self.savefig(png, dpi=PRINT_DPI, metadata={"Software": None})
            self.savefig(pdf, metadata={"CreationDate": None, "Producer": None})
        return png, pdf

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=SCREEN_DPI)
        return buffer.getvalue()


def new_figure(height: float, footer: Sequence[tuple[str, str]] = ()) -> PrintFigure:
    """An empty figure of the page's text width, in this style, with a footer of (text, colour) paragraphs.

    Args:
        height: inches, the footer not counted.
    """
    unbroken = ((re.sub(r"(\d) (h|min|s)\b", "\\1\N{NO-BREAK SPACE}\\2", text), colour) for text, colour in footer)
    lines = [(line, colour) for text, colour in unbroken for line in textwrap.wrap(text, _FOOTER_CHARACTERS)]
    below = len(lines) * _FOOTER_LINE + (0.06 if lines else 0.0)
    figure = PrintFigure(figsize=(WIDTH, height + below), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    share = below / (height + below)
    figure.get_layout_engine().set(rect=(0, share, 1, 1 - share), h_pad=0.04, w_pad=0.04)
    for number, (line, colour) in enumerate(reversed(lines)):
        y = (0.04 + number * _FOOTER_LINE) / (height + below)
        figure.text(0.008, y, line, fontsize=6, color=colour, va="bottom", ha="left", in_layout=False)
    return figure


def end_labels(axes: Axes, labels: Sequence[tuple[float, str, dict]], axes_height: float) -> None:
    """A legend whose entries stand at the right of the axes, each as near as can be to its line's end.

    Args:
        labels: (y in data, text, properties of the line), any order; call when the y limits are final.
        axes_height: about, in inches; the layout is not known yet.
    """
    to_fraction = axes.transData + axes.transAxes.inverted()
    wanted = sorted(((to_fraction.transform((1, y))[1], text, line) for y, text, line in labels), key=itemgetter(0))
    places = _spread_out([y for y, _, _ in wanted], 0.14 / axes_height)
    for place, (_, text, line) in zip(places, wanted, strict=True):
        handle = Line2D([2, 10, 18], [0] * 3, **{**line, "markevery": [1]})
        box = DrawingArea(20, 0)
        box.add_artist(handle)
        entry = HPacker(children=[box, TextArea(text, textprops={"fontsize": 7})], pad=0, sep=3, align="center")
        axes.add_artist(
            AnnotationBbox(
                entry,
                (1, place),
                xycoords="axes fraction",
                xybox=(3, 0),
                boxcoords="offset points",
                box_alignment=(0, 0.5),
                frameon=False,
                pad=0,
                annotation_clip=False,
            )
        )


def _spread_out(places: list[float], spacing: float) -> list[float]:
    """Move sorted places apart to at least `spacing`, as little as possible, within 0 to 1 where they fit."""
    count = len(places)
    # Pool adjacent violators: neighbours that are too close share the mean of where they want to be.
    pools: list[list[float]] = []  # [sum of wanted - own offset, members]
    for index, place in enumerate(places):
        pools.append([place - index * spacing, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, members = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + members]
    starts = [total / members for total, members in pools for _ in range(int(members))]
    upper = max(0.0, 0.97 - (count - 1) * spacing)
    return [min(max(start, 0.0), upper) + index * spacing for index, start in enumerate(starts)]


_FOOTER_CHARACTERS = 145
_FOOTER_LINE = 0.125  # inches
