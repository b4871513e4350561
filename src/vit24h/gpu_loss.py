"""The GPU is gone while the process lives: how that is noticed. Must not know torch, nor what a run does about it.

It happens in two ways. A container loses the right to the device files (`systemctl daemon-reload` on the host makes
systemd forget what the container runtime had allowed; NVML then says "Unknown Error"): what has the GPU open goes on,
whatever starts next finds none. Or the device itself fails, and every CUDA call of the process with it. Either way a
new start of the container, or of the process, is the remedy, which is what the exit status of its own is for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXIT_STATUS = 75  # "temporary failure, try again" in sysexits.h

_CONTROL_FILE = Path("/dev/nvidiactl")  # what every use of the driver opens first

# CUDA's own numbers, of errors that speak of the device and not of the program.
_DEVICE_ERRORS = {
    46: "busy or unavailable",
    100: "no device is detected",
    214: "uncorrectable memory (ECC) error",
    220: "uncorrectable NVLink error",
    226: "hardware error",
    304: "the operating system refuses",
    719: "unspecified launch failure",
    999: "unknown error",
}


class GpuLost(Exception):  # noqa: N818
    """The GPU cannot be used any more by this process, or by this container; the message says what was seen."""


def lost_access(control_file: Path = _CONTROL_FILE) -> str | None:
    """Why the GPU's driver can no longer be opened here although it is there; None if it can, or there is none."""
    try:
        os.close(os.open(control_file, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        # EPERM is the container's device rules; a missing right of the user would be EACCES.
        if error.errno == errno.EPERM:
            return f"{control_file}: {os.strerror(error.errno).lower()}"
    return None


@contextmanager
def noticing_gpu_loss() -> Iterator[None]:
    """Turn a CUDA error that speaks of a lost device into `GpuLost`; others pass."""
    try:
        yield
    except RuntimeError as error:
        # torch.AcceleratorError carries CUDA's number. Once a device has failed every call says so.
        seen = _DEVICE_ERRORS.get(getattr(error, "error_code", None))
        if seen is None:
            raise
        raise GpuLost(f"CUDA: {seen}") from error
