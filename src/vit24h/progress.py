"""Showing how long work gets on: a bar on a terminal, plain lines in a log. Must not know what the work is."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

_LINE_EVERY_S = 10.0
_BAR = "{desc} {percentage:3.0f}%|{bar:20}| "  # tqdm's own {postfix} begins with a comma
_WAITING_WORTH_A_WORD = 0.05  # of the time
_LINE_EVERY_PROGRESS = 0.005  # of the budget: a 24-hour run writes a line about every seven minutes


class TrainDisplay:
    """One training run's live line: progress, image size, epochs, images/s, top-1 so far, time left."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._last_line = (-math.inf, -math.inf)  # (when, at which progress)

    @classmethod
    def silent(cls) -> TrainDisplay:
        """One that shows nothing, for processes beside the one that does."""
        return cls("", io.StringIO())

    def __enter__(self) -> TrainDisplay:
        if self._stream.isatty():
            self._bar = tqdm(total=1.0, desc=self._title, file=self._stream, bar_format=_BAR)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, status: Mapping[str, Any], *, force: bool = False) -> None:
        """Show where the run is (`describe`); in a log only when a line is due, or `force`."""
        progress = status["progress"]
        if self._bar is not None:
            self._bar.n = progress
            self.note(" · ".join(describe(status)))
            return
        now, (last_time, last_progress) = time.monotonic(), self._last_line
        due = now - last_time >= _LINE_EVERY_S and progress - last_progress >= _LINE_EVERY_PROGRESS
        if due or force:
            self._last_line = (now, progress)
            print(f"{self._title}  {progress:4.0%}  " + "  ".join(describe(status)), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """What is going on just now; on a terminal only."""
        if self._bar is not None:
            self._bar.bar_format = _BAR + text
            self._bar.refresh()

    def message(self, text: str) -> None:
        """A line that stays."""
        if self._bar is not None:
            self._bar.write(f"{self._title}: {text}", file=self._stream)
        else:
            print(f"{self._title}: {text}", file=self._stream, flush=True)


class CountDisplay:
    """Work on a known number of things: how many are done, how fast, and the time left.

    Args:
        title: of the line.
        total: how many there are.
        unit: what they are.
    """

    def __init__(self, title: str, total: int, unit: str, stream: TextIO | None = None) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._begun = self._last_line = time.monotonic()
        self._before = self._shown = 0

    def __enter__(self) -> CountDisplay:
        if self._stream.isatty():
            self._bar = tqdm(total=self._total, desc=self._title, file=self._stream, bar_format=_BAR)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start_at(self, done: int) -> None:
        """So many were done before; speed is counted from here on."""
        self._before, self._begun = done, time.monotonic()

    def update(self, done: int) -> None:
        """Show that so many are done; in a log only when a line is due."""
        now = time.monotonic()
        due = now - self._last_line >= _LINE_EVERY_S and done - self._shown >= _LINE_EVERY_PROGRESS * self._total
        if self._bar is None and not due:
            return
        words = f"{done:,} of {self._total:,} {self._unit}"
        if done > self._before:
            rate = (done - self._before) / max(now - self._begun, 1e-3)
            words += f" · {rate:,.0f} {self._unit}/s · {duration((self._total - done) / rate)} left"
        if self._bar is not None:
            self._bar.n = done
            self.note(words)
            return
        self._last_line, self._shown = now, done
        print(f"{self._title}  {done / self._total:4.0%}  {words}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """What is going on just now; on a terminal only."""
        if self._bar is not None:
            self._bar.bar_format = _BAR + text
            self._bar.refresh()


def describe(status: Mapping[str, Any]) -> list[str]:
    """A training run's state in a few words each.

    Args:
        status: `image_size` in pixels, `epochs`, `top1` in percent, `images_per_s`, `waiting_share` of the time spent
            waiting for data, `left_s`; None for what is not known yet.
    """
    parts = [f"{status['image_size']} px", f"epoch {status['epochs']:.2f}"]
    if status["images_per_s"] is not None:
        parts.append(f"{status['images_per_s']:,.0f} images/s")
    if status["waiting_share"] >= _WAITING_WORTH_A_WORD:
        parts.append(f"{status['waiting_share']:.0%} waiting for data")
    parts.append("top-1 -" if status["top1"] is None else f"top-1 {status['top1']:.2f} %")
    if status["left_s"] is not None:
        parts.append(f"{duration(status['left_s'])} left")
    return parts


def duration(seconds: float) -> str:
    """`7:05` minutes, or `23:07:05` hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class PlanDisplay:
    """How far the measuring of a plan is: a bar on a terminal, a line each round in a log."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._bar: tqdm | None = None
        self._last: tuple[str, int] | None = None

    def __enter__(self) -> PlanDisplay:
        if self._stream.isatty():
            self._bar = tqdm(desc="measuring", file=self._stream, bar_format="{desc}", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, names: str, number: int, rounds: int, image_size: int) -> None:
        """The next image size has its turn in round `number` of `rounds`."""
        if self._bar is not None:
            self._bar.set_description_str(f"measuring {names}: round {number} of {rounds}, {image_size} px")
        elif self._last != (names, number):
            print(f"measuring {names}: round {number} of {rounds}", file=self._stream, flush=True)
        self._last = (names, number)
