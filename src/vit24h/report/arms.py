"""The arms of the tables and figures: their order, names, looks and published counterparts, in this one place.

An arm looks the same in every figure. Colours are from the palette of Okabe and Ito (2008), told apart by colour-blind
readers; markers differ too, because in grey they must do the telling. Line style is not used for it: dashed means
unfinished. Must not know: records, figures.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One row of the tables, one line of the figures."""

    name: str  # the folder of the suite
    label: str  # what a reader sees
    colour: str
    marker: str  # matplotlib's
    published: str | None = None  # its series in paper_curves.csv


def arm(name: str) -> Arm:
    """The arm of that name; one that this file does not know gets its looks from its name, so they stay the same."""
    known = _BY_NAME.get(name)
    if known is not None:
        return known
    look = zlib.crc32(name.encode())
    colour = _SPARE_COLOURS[look % len(_SPARE_COLOURS)]
    marker = _SPARE_MARKERS[look // len(_SPARE_COLOURS) % len(_SPARE_MARKERS)]
    return Arm(name, name.replace("_", " "), colour, marker)


def order(name: str) -> tuple[int, str]:
    """Sort key: the paper's arms first, in the order below, then all others by name."""
    return (_RANK.get(name, len(_RANK)), name)


ARMS = (
    Arm("baseline", "Baseline", "#000000", "o", "DeiT-S"),
    Arm("locality", "Locality", "#0072B2", "s", "Ours (locality)"),
    Arm("curriculum", "Curriculum", "#E69F00", "^"),
    Arm("combined", "Combined", "#D55E00", "D", "Ours + curriculum 32px/5ep/+32px"),
    Arm("localvit", "LocalViT", "#CC79A7", "v", "LocalViT-S"),
    Arm("combined_128_3_16", "Combined 128/3/16", "#56B4E9", "<", "Ours + curriculum 128px/3ep/+16px"),
    Arm("combined_128_5_16", "Combined 128/5/16", "#009E73", ">", "Ours + curriculum 128px/5ep/+16px"),
    Arm("combined_64_3_16", "Combined 64/3/16", "#8C6D31", "p", "Ours + curriculum 64px/3ep/+16px"),
    Arm("combined_64_5_32", "Combined 64/5/32", "#7A5195", "d", "Ours + curriculum 64px/5ep/+32px"),
)

_BY_NAME = {known.name: known for known in ARMS}
_RANK = {known.name: rank for rank, known in enumerate(ARMS)}
_SPARE_COLOURS = ("#999999", "#B2182B", "#4D9221", "#2166AC")
_SPARE_MARKERS = ("h", "P", "X", "*", "8")
