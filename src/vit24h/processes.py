"""Not leaving processes behind. Must not know what they do."""

from __future__ import annotations

import ctypes
import os
import signal


def signal_when_parent_dies(parent: int, number: signal.Signals) -> None:
    """Be sent `number` when the process `parent` ends, however it ends (Linux).

    A killed suite leaves no arm behind, and a killed arm no worker, which would go on holding the run's folder.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number)
    if os.getppid() != parent:  # it was gone before we asked
        os.kill(os.getpid(), number)
