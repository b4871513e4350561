"""Starting all processes that were asked for, and leaving none behind. Must not know what they do."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from vit24h.errors import UserError


def signal_when_parent_dies(parent: int, number: signal.Signals) -> None:
    """Be sent `number` when the process `parent` ends, however it ends (Linux).

    A killed suite leaves no arm behind, and a killed arm no worker, which would go on holding the run's folder.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number)
    if os.getppid() != parent:  # it was gone before we asked
        os.kill(os.getpid(), number)


def start_all_launched() -> None:
    """Become the several processes that `accelerate launch --cpu --num_processes N` was asked for.

    Without MPI accelerate (1.15) starts a single one on a CPU, and says nothing. It does leave the port to meet at in
    the environment; the number is only in its own command line. On GPUs it starts them all, and this does nothing.

    Raises:
        UserError: several were asked for, and there is no telling how many.
    """
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if not on_cpu or "MASTER_PORT" not in os.environ or "WORLD_SIZE" in os.environ:
        return
    number = _asked_for(os.getppid())
    if number is None:
        raise UserError(
            "accelerate launch started one process where several were asked for (on a CPU it needs MPI): start them "
            "with `torchrun --nproc_per_node N -m vit24h train ...`"
        )
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", number, "--master_port", os.environ["MASTER_PORT"]]
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", "vit24h", *sys.argv[1:]])


def leave(status: int) -> None:
    """End this process with `status`; return where it is the only one, which may end as any program does.

    The threads in which torch lets several processes talk outlive `destroy_process_group` for as long as a model holds
    them. One that asks for the interpreter while it is being taken down aborts the process, after all work is done.
    """
    if "WORLD_SIZE" not in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _asked_for(launcher: int) -> str | None:
    """The value of --num_processes in the command line of the process `launcher`."""
    try:
        words = Path(f"/proc/{launcher}/cmdline").read_text(encoding="utf-8").split("\0")
    except (OSError, UnicodeDecodeError):
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.replace("-", "_").partition("=")
        if option == "__num_processes" and (value or following).isdecimal():
            return value or following
    return None
