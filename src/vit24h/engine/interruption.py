"""Being asked to stop: Ctrl-C and SIGTERM become a flag that the training loop looks at after every step."""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - not an error: the run is saved and goes on at the next start
    """The run was asked to stop and has saved itself. `exit_status` is 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_status = 128 + signal_number


def stop_when_parent_dies(parent: int) -> None:
    """Be sent SIGTERM when the process `parent` ends, however it ends (Linux): a killed suite leaves no arm behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it was gone before we asked
        os.kill(os.getpid(), signal.SIGTERM)


class StopSignals:
    """While it is entered, the first Ctrl-C or SIGTERM only sets `received`; a second Ctrl-C leaves at once."""

    def __init__(self) -> None:
        self.received: int | None = None
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

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            signal.signal(signal.SIGINT, signal.default_int_handler)
