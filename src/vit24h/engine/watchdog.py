"""Noticing that training does not move, and telling where it hangs. Must not know what it does.

A hung read, a stuck driver or a lost network disk raise no error: the program waits. A thread beside it looks whether
it still moves.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FRAMES = 6  # innermost calls of the stack that are told


class Watchdog:
    """While it is entered, `stalled` is called after every `minutes` without `moved`, from a thread of its own.

    Args:
        stalled: told `minutes` since the last move; `at`, the innermost calls of the thread that entered; `workers`.
        workers: (process id, what it is reading or None) of the processes that the work may be waiting for.
    """

    def __init__(
        self,
        minutes: float,
        *,
        stalled: Callable[..., Any],
        workers: Callable[[], list[tuple[int, Path | None]]] = list,
    ) -> None:
        self._seconds = 60 * minutes
        self._stalled = stalled
        self._workers = workers
        self._moved_at = time.monotonic()
        self._ended = threading.Event()
        self._watched = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def moved(self) -> None:
        self._moved_at = time.monotonic()

    def __enter__(self) -> Watchdog:
        self._watched = threading.get_ident()
        self.moved()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    def _watch(self) -> None:
        reported_at = self._moved_at
        while True:
            due = max(self._moved_at, reported_at) + self._seconds
            if self._ended.wait(max(due - time.monotonic(), 0.01)):
                return
            now = time.monotonic()
            if now - max(self._moved_at, reported_at) < self._seconds:
                continue
            reported_at = now
            self._stalled(
                minutes=round((now - self._moved_at) / 60, 2),
                at=_calls(self._watched),
                workers=[_state(process, reading) for process, reading in self._workers()],
            )


def _calls(thread: int) -> str:
    """The innermost calls of a thread, the innermost first, such as `queue.py:180 get`."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    innermost = reversed(traceback.extract_stack(frame)[-_FRAMES:])
    return " < ".join(f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in innermost)


def _state(process: int, reading: Path | None) -> str:
    """Such as `process 4711, sleeping (in wait_for_partner), at /data/train/n01440764/1.JPEG`."""
    proc = Path(f"/proc/{process}")
    try:
        status = (proc / "status").read_text(encoding="utf-8")
        state = next(line.split(None, 1)[1].strip() for line in status.splitlines() if line.startswith("State:"))
    except (OSError, StopIteration):
        return f"process {process}, gone"
    try:
        place = (proc / "wchan").read_text(encoding="utf-8").strip("0")
    except OSError:
        place = ""
    return f"process {process}, {state}" + (f" in {place}" if place else "") + (f", at {reading}" if reading else "")
