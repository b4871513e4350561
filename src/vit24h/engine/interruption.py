"""Being asked to stop: Ctrl-C and SIGTERM become a flag that the training loop looks at after every step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - not an error: the run goes on at the next start
    """The run was asked to stop and has ended, `saved` or, where the disk did not take it, not.

    `exit_status` is 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, signal_number: int, *, saved: bool) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number
        self.saved = saved


class StopRequested(BaseException):
    """Raised by a stop signal inside `StopSignals.ending_a_wait`.

    No Exception: decoding an image, which may be what is interrupted, takes every one of those for a damaged image.
    """


class StopSignals:
    """While it is entered, the first Ctrl-C or SIGTERM only sets `received`; a second Ctrl-C leaves at once.

    Args:
        goes_on_from: where the next start will, for a message.
    """

    def __init__(self, goes_on_from: str = "the last checkpoint") -> None:
        self._goes_on_from = goes_on_from
        self.received: int | None = None
        self._in_a_wait = False
        self._outer: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._outer[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._outer.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        return self.received is not None

    @contextmanager
    def ending_a_wait(self) -> Iterator[None]:
        """For what may take long, or hang, and can be given up at any point: a stop raises StopRequested in it."""
        self._in_a_wait = True
        try:
            if self.received is not None:
                raise StopRequested
            yield
        finally:
            self._in_a_wait = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
        elif number == signal.SIGINT:
            # At once: no exception, which whatever hangs could hold up. What was saved before is whole, and the next
            # start removes what is half-written.
            os.write(2, f"\nleft at once; the next start goes on from {self._goes_on_from}\n".encode())
            os._exit(128 + number)
        if self._in_a_wait:
            raise StopRequested
