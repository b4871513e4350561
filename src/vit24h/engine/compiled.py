"""`torch.compile` for the training step: one graph for each image size, and never the uncompiled code in its place.

Evaluation is not compiled: it has a last, smaller batch and a second model, the averaged one, each of which would be
compiled anew, for a pass that takes seconds an epoch. Nor is the next size compiled while the one before trains: that
would take Python's lock, and so the launching of kernels, away from the training. Must not know: what is compiled, the
loop.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch
import torch._dynamo
from accelerate import Accelerator
from torch._dynamo import callback

from vit24h import paths
from vit24h.config import RuntimeConfig
from vit24h.errors import UserError


def configured(
    runtime: RuntimeConfig, accelerator: Accelerator, *, shapes: int
) -> Callable[[Callable[..., Any]], Compiled] | None:
    """What compiles a function for `shapes` shapes as a configuration wants it; None where it wants nothing compiled.

    Raises:
        UserError: it is to be compiled and there is no compiler.
    """
    on_gpu, processes = accelerator.device.type == "cuda", accelerator.num_processes
    if not wants_compiling(runtime, accelerator.device, processes):
        return None
    require_compiler(on_gpu=on_gpu)
    return partial(Compiled, shapes=shapes, cuda_graphs=runtime.cuda_graphs and on_gpu, whole=processes == 1)


def wants_compiling(runtime: RuntimeConfig, device: torch.device, processes: int = 1) -> bool:
    """`auto`: on one GPU. On a CPU it costs a short run more than it gives; over several processes it is untried."""
    return device.type == "cuda" and processes == 1 if runtime.compile == "auto" else runtime.compile


def require_compiler(*, on_gpu: bool) -> None:
    """Say now what torch would only say, in many lines, when it compiles for the first time.

    Raises:
        UserError: no C compiler, or no headers of Python's.
    """
    variable, usual = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++", "clang++"))
    names = [os.environ[variable]] if os.environ.get(variable) else usual
    if not any(shutil.which(name) for name in names):
        problem = f"no compiler found ({', '.join(names)})"
    elif not Path(sysconfig.get_path("include"), "Python.h").is_file():
        problem = f"no Python.h in {sysconfig.get_path('include')}"
    else:
        return
    raise UserError(
        f"runtime.compile: torch.compile builds its kernels here, and there is {problem}: install g++ and python3-dev "
        "(as the Dockerfile does), or set runtime.compile=false"
    )


class Compiled:
    """`function` compiled anew for every shape that it is called with, and the seconds that took.

    A shape that cannot be compiled as one graph is an error, and so is one shape more than expected: torch would go on
    with the code as it is written, without a word, at a third of the speed.

    What is compiled is kept on disk (TORCHINDUCTOR_CACHE_DIR, else beside the drawn images), so that a resumed run,
    or the next arm with the same model, is quicker; whatever it takes is part of the step that needs it.

    Args:
        shapes: how many are expected.
        cuda_graphs: replay a recording of all kernels of a graph instead of launching each.
        backend: of torch.compile; "aot_eager" traces the same graphs and runs them without compiling any kernel.
        whole: one graph; False where several processes share the batch and exchange gradients in its middle.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        shapes: int,
        cuda_graphs: bool = False,
        backend: str = "inductor",
        whole: bool = True,
    ) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(paths.image_cache() / "torchinductor"))
        # Torch counts compilations by code object and allows eight: for seven sizes, another model in the same process
        # would be one too many. A copy of the code has a count of its own.
        own = _with_own_code(function)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, shapes)
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # fullgraph=True means the same; this is for the rest
        self._cuda_graphs = cuda_graphs
        self._function = torch.compile(
            own,
            fullgraph=whole,
            dynamic=False,  # a size is trained for hours: a graph for that very size is the faster one
            backend=backend,
            **({"mode": "reduce-overhead"} if cuda_graphs else {}),
        )

    def __call__(self, *arguments: Any) -> Any:
        if not self._cuda_graphs:
            return self._function(*arguments)
        torch.compiler.cudagraph_mark_step_begin()
        # What a recording returns lies where its next replay writes.
        return self._function(*arguments).clone()


class CompileClock:
    """Seconds that torch spent compiling in this process since the last look, on all threads."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._begin: float | None = None
        callback.on_compile_start(self._start)
        callback.on_compile_end(self._end)

    def take(self) -> float:
        """The seconds since the last call; 0.0 if nothing was compiled."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def close(self) -> None:
        callback.callback_handler.remove_start_callback(self._start)
        callback.callback_handler.remove_end_callback(self._end)

    def _start(self, _: callback.CallbackArgs) -> None:
        self._begin = time.perf_counter()

    def _end(self, _: callback.CallbackArgs) -> None:
        if self._begin is not None:
            self._seconds += time.perf_counter() - self._begin
            self._begin = None


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    code: CodeType = function.__code__
    copy = FunctionType(
        code.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
