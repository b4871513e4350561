"""Which device a run uses, in which arithmetic, and what that device is."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator

from vit24h.config import Config
from vit24h.errors import UserError
from vit24h.gpu_loss import GpuLost, lost_access


def select_device(requested: str) -> torch.device:
    """`auto`: the GPU where torch sees one.

    Raises:
        UserError: a GPU is asked for and there is none.
        GpuLost: there was one; `auto` is no reason to go on without it.
    """
    if requested != "cpu" and not torch.cuda.is_available() and (seen := lost_access()):
        raise GpuLost(seen)
    if requested == "cpu" or (requested == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "runtime.device: cuda is asked for, but torch sees no GPU: check `nvidia-smi` (driver 580 or newer for "
            "CUDA 13.0), or set runtime.device=cpu"
        )
    return torch.device("cuda")


def lost_gpu(device: torch.device) -> str | None:
    """Why a new process would not find the GPU that this one has, in a word; None if it would, or on a CPU."""
    return lost_access() if device.type == "cuda" else None


def select_precision(config: Config, device: torch.device) -> str:
    """`fp16`, `bf16` or `fp32`; `auto` is the paper's fp16 on a GPU and fp32 on a CPU.

    Raises:
        UserError: the device cannot do what is asked for.
    """
    requested = config.optimizer.precision
    if requested == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    if requested == "fp16" and device.type == "cpu":
        raise UserError("optimizer.precision: fp16 needs a GPU (its loss scaling is made for one): set bf16 or fp32")
    if requested == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"optimizer.precision: {torch.cuda.get_device_name()} has no bf16: set fp16 or fp32")
    return requested


def make_accelerator(config: Config, device: torch.device) -> Accelerator:
    """The device, the arithmetic, and the other processes where this one was launched with some.

    Raises:
        UserError: the device cannot do that arithmetic.
    """
    precision = select_precision(config, device)
    return Accelerator(cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision)


def select_workers(requested: int | str, device: torch.device) -> int:
    """Loader processes. `auto`, on a GPU: the CPU cores less one for the training loop; on a CPU: what it leaves."""
    if requested != "auto":
        return int(requested)
    busy = 1 if device.type == "cuda" else _compute_threads()
    return max(1, min(16, _cores() - busy))


def limit_threads(device: torch.device) -> None:
    """On a CPU, compute with half of the cores and leave the rest to the loader, unless OMP_NUM_THREADS is set.

    More threads than free cores wait for each other at every operation, which on two cores costs more than half the
    speed. The number does not depend on the number of workers, because sums, and so weights, depend on it.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(_compute_threads())


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """Whether a GPU may multiply float32 matrices, and convolve float32 images, with 10 bits of mantissa."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed


def gpu_facts(device: torch.device) -> dict[str, Any] | None:
    """Name, memory in GiB, compute capability and CUDA version; None on a CPU."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }


def synchronize(device: torch.device) -> None:
    """Wait until all that is queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _compute_threads() -> int:
    return max(1, _cores() // 2)
