"""Tables of records within another text, such as the README: written between two marks, and never typed by hand.

A place is marked in Markdown as

    <!-- begin results/mini: results -->
    ...
    <!-- end results/mini: results -->

with the suite's name and one of PARTS. Must not know: figures, notebooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vit24h.errors import UserError
from vit24h.report import tables
from vit24h.report.comparison import Comparison
from vit24h.report.source import Suite

PARTS: dict[str, Callable[[Sequence[Comparison]], str]] = {
    "results": lambda groups: tables.main_columns(groups).to_markdown(),
    "order": tables.order_in_words,
    "gaps": lambda groups: tables.gap_sources(groups).to_markdown(),
}


def embedded(text: str, suite: Suite) -> str:
    """`text` with every place of this suite filled anew; places of other suites stay as they are.

    Raises:
        UserError: no place of this suite, an unknown part, or a begin without its end.
    """
    found = list(_BEGIN.finditer(text))
    own = [mark for mark in found if mark["suite"] == suite.name]
    if not own:
        there = ", ".join(dict.fromkeys(mark["suite"] for mark in found)) or "none at all"
        raise UserError(
            f"no place for {suite.name}, but for {there}: mark one with {_mark('begin', suite.name, 'results')} and "
            f"{_mark('end', suite.name, 'results')}, each on a line of its own"
        )
    for mark in own:
        part = mark["part"]
        if part not in PARTS:
            raise UserError(f"{mark[0]}: no such part; there are {', '.join(PARTS)}")
        begin, end = mark[0], _mark("end", suite.name, part)
        head, _, rest = text.partition(begin + "\n")
        _, found_end, tail = rest.partition(end + "\n")
        if not found_end:
            raise UserError(f"{begin}: without {end} after it, on a line of its own")
        text = f"{head}{begin}\n\n{PARTS[part](suite.comparisons)}\n{end}\n{tail}"
    return text


def _mark(kind: str, suite: str, part: str) -> str:
    return f"<!-- {kind} {suite}: {part} -->"


_BEGIN = re.compile(r"^<!-- begin (?P<suite>[^\s:]+): (?P<part>[\w ]+) -->$", re.MULTILINE)
