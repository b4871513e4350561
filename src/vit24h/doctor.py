"""Is this machine ready? Looks at everything that would otherwise be found out hours into a run, or cost them.

Every check says what it found, and where that is not right what to do. Must not know: the loop, the suite.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from vit24h.config import Config
from vit24h.data import Dataset, ImageSource
from vit24h.data.decode import CorruptImageError, load_image
from vit24h.data.loader import EVAL_PREFETCH_BATCHES
from vit24h.data.randomness import Stream, generator
from vit24h.engine import device as devices
from vit24h.engine import inputs
from vit24h.engine.compiled import require_compiler, wants_compiling
from vit24h.engine.trial import time_steps, try_largest_step
from vit24h.errors import UserError
from vit24h.gpu_loss import GpuLost, lost_access
from vit24h.models import build_model
from vit24h.records.environment import driver_version

State = Literal["ok", "warn", "fail", "-"]

_DRIVER_OF_CUDA_13 = 580
_SAMPLED_IMAGES = 32  # of each split, spread over it
_CORRUPT_SHOWN = 20
_IMAGES_PER_CORRUPT = 1000  # a run stops at more than one corrupt training image in so many
_MEASURED_S = 0.4
_CHECKPOINTS = 3  # the last two, and the one that is being written
_REPORT_BYTES = 100 * 2**20
_WORKER_BYTES = 300 * 2**20  # of memory, with its pictures
_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding. `-`: does not apply here; `warn`: it works, but not as it could; `fail`: do not start."""

    name: str
    state: State
    found: str
    remedy: str = ""  # what to do, where the state is warn or fail


def examine(configs: Sequence[Config], folder: Path, *, full: bool = False) -> Iterator[Check]:
    """Check what training `configs` below `folder` needs, one finding after another.

    Args:
        configs: the runs to come, all of one dataset.
        full: decode every image of the dataset, not some.

    Raises:
        GpuLost: there is a GPU which this container may no longer use.
    """
    config = configs[0]
    device, gpu = _gpu(config)
    yield gpu
    yield _driver(device)
    yield _memory(config, device)
    yield _shared_memory(configs, device)
    yield _writing(folder)
    yield _disk(configs, folder)
    try:
        dataset = inputs.open_configured_dataset(config.data)
        for each in configs:
            inputs.epoch_order(each, dataset)
    except UserError as error:
        yield Check("dataset", "fail", *_split(str(error)))
        return
    counts = f"{len(dataset.train):,} training and {len(dataset.val):,} validation images"
    packed = "" if dataset.packing is None else f", packed ({dataset.train.packed_as.describe()})"
    yield Check("dataset", "ok", f"{counts} of {len(dataset.classes)} classes{packed}")
    yield _all_images(dataset) if full else _some_images(dataset)
    yield _gpu_memory(configs, dataset, device)
    if device is not None and wants_compiling(config.runtime, device):
        yield (compiler := _compiler(device))
        if compiler.state == "fail":
            return  # what the GPU takes is not known without
    yield _loader(config, dataset, device)


# -- the device -----------------------------------------------------------------------------------------------------


def _gpu(config: Config) -> tuple[torch.device | None, Check]:
    asked_for = config.runtime.device
    if torch.cuda.is_available() and asked_for != "cpu":
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        found = f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB, compute capability {capability}"
        if torch.cuda.device_count() > 1:
            found += f"; the first of {torch.cuda.device_count()}, the others stay idle"
        return torch.device("cuda"), Check("gpu", "ok", found)
    if asked_for != "cpu" and (seen := lost_access()):
        raise GpuLost(seen)
    present = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if asked_for == "cuda" or (asked_for == "auto" and present):
        found = "the system has one, but torch sees none" if present else "none, and runtime.device=cuda asks for one"
        return None, Check(
            "gpu", "fail", found, f"see that `nvidia-smi` works and the driver is {_DRIVER_OF_CUDA_13} or newer "
            "(in Docker: --gpus all), or set runtime.device=cpu"
        )  # fmt: skip
    if asked_for == "auto" and not config.smoke and (config.budget.hours or 24) >= 2:
        return torch.device("cpu"), Check(
            "gpu", "warn", "none: this will train on the CPU", "take a machine with a GPU for it, --quick to see that "
            "everything works, or set runtime.device=cpu to say that it is meant"
        )  # fmt: skip
    return torch.device("cpu"), Check("gpu", "-", f"training on the CPU, {os.cpu_count()} cores")


def _driver(device: torch.device | None) -> Check:
    wheels = f"these wheels are of CUDA {torch.version.cuda}"
    version = driver_version()
    if version is None:
        return Check("driver", "-", f"no NVIDIA driver; {wheels}")
    found = f"{version}; {wheels}"
    major = int(version.partition(".")[0]) if version.partition(".")[0].isdigit() else 0
    if major >= _DRIVER_OF_CUDA_13:
        return Check("driver", "ok", found)
    state: State = "warn" if device is not None and device.type == "cpu" else "fail"
    return Check("driver", state, found, f"install a driver {_DRIVER_OF_CUDA_13} or newer")


def _gpu_memory(configs: Sequence[Config], dataset: Dataset, device: torch.device | None) -> Check:
    """Try a step of every model at its largest size."""
    if device is None or device.type != "cuda":
        return Check("gpu memory", "-", "no GPU is used")
    free, total = torch.cuda.mem_get_info()
    peak = 0
    tried = set()
    for config in configs:
        if (needs := (config.model, config.optimizer, config.curriculum)) in tried:
            continue
        tried.add(needs)
        torch.cuda.reset_peak_memory_stats()
        try:
            model = build_model(config.model, len(dataset.classes)).to(device)
            try_largest_step(config, model, len(dataset.classes), _accelerator(config, device))
        except UserError as error:
            return Check("gpu memory", "fail", *_split(str(error)))
        peak = max(peak, torch.cuda.max_memory_reserved())
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free, the largest step takes {peak / _GIB:.1f}"
    if free < 0.9 * total:
        return Check("gpu memory", "warn", found, "end what else uses this GPU: it takes time from every run")
    return Check("gpu memory", "ok", found)


def _compiler(device: torch.device) -> Check:
    try:
        require_compiler(on_gpu=device.type == "cuda")
    except UserError as error:
        return Check("compiler", "fail", *_split(str(error)))
    return Check("compiler", "ok", "there, with Python's headers: the training step is compiled")


def _loader(config: Config, dataset: Dataset, device: torch.device | None) -> Check:
    """Images a second that the workers give, and that the GPU takes, at the first and the last size."""
    cpu = device is None or device.type != "cuda"
    workers = devices.select_workers(config.runtime.workers, device or torch.device("cpu"))
    sizes = _sizes(config)
    given = {size: _decoded_per_s(config, dataset.train, size) * max(workers, 1) for size in sizes}
    of_workers = f"{_count(workers, 'worker')} on {_count(len(os.sched_getaffinity(0)), 'core')}"
    rates = ", ".join(f"{rate:,.0f} images/s at {size} px" for size, rate in given.items())
    if cpu:
        return Check("loader", "-", f"{of_workers}: {rates}; a CPU trains more slowly than that")
    model = build_model(config.model, len(dataset.classes)).to(device)
    accelerator = _accelerator(config, device)
    taken = {}
    for size in sizes:
        seconds = time_steps(config, model, len(dataset.classes), accelerator, size)
        taken[size] = inputs.batch_size(config, size) / seconds
    found = f"{of_workers}: {rates}; the GPU takes " + ", ".join(f"{taken[size]:,.0f} at {size}" for size in sizes)
    short = [size for size in sizes if given[size] < taken[size]]
    if not short:
        return Check("loader", "ok", found)
    return Check(
        "loader", "warn", f"{found}: it will wait for images at {' and '.join(map(str, short))} px",
        f"more CPU cores (about {max(taken[size] / given[size] for size in short) * max(workers, 1):.0f}), or "
        "packed images (`vit24h pack`)"
    )  # fmt: skip


def _accelerator(config: Config, device: torch.device) -> Accelerator:
    AcceleratorState._reset_state()  # it holds the precision of the first one in a process for all others
    return devices.make_accelerator(config, device)


def _decoded_per_s(config: Config, images: ImageSource, size: int) -> float:
    """Images that one process decodes and augments in a second, repeated augmentation included."""
    transform, repeats = inputs.train_transform(config), config.data.repeated_augmentation
    done, begin = 0, time.perf_counter()
    for index in _spread(images, _SAMPLED_IMAGES * 4):
        try:
            picture = load_image(images, index)
            transform.crops(picture, size, [generator(Stream.SAMPLE, 0, 0, done + crop) for crop in range(repeats)])
        except CorruptImageError:
            continue
        done += repeats
        if time.perf_counter() - begin > _MEASURED_S:
            break
    return done / (time.perf_counter() - begin)


def _sizes(config: Config) -> list[int]:
    return sorted({config.image_sizes[0], config.image_sizes[-1]})


# -- memory and disks -----------------------------------------------------------------------------------------------


def _memory(config: Config, device: torch.device | None) -> Check:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return Check("memory", "-", "this system does not tell")
    workers = devices.select_workers(config.runtime.workers, device or torch.device("cpu"))
    wanted = workers * _WORKER_BYTES + 2 * _GIB
    found = f"{free / _GIB:.1f} GiB free, about {wanted / _GIB:.1f} wanted with {_count(workers, 'worker')}"
    if free < wanted:
        return Check("memory", "warn", found, "set runtime.workers lower, or end what else runs here")
    return Check("memory", "ok", found)


def _shared_memory(configs: Sequence[Config], device: torch.device | None) -> Check:
    """Batches that are ready lie in /dev/shm."""
    wanted = 0
    for config in configs:
        workers = devices.select_workers(config.runtime.workers, device or torch.device("cpu"))
        batch = max(3 * size**2 * inputs.batch_size(config, size) for size in config.image_sizes)
        train = workers * config.runtime.prefetch_batches * batch
        evaluation = workers * EVAL_PREFETCH_BATCHES * config.runtime.eval_batch_size * 3 * config.model.image_size**2
        wanted = max(wanted, train + evaluation)
    if not wanted:
        return Check("/dev/shm", "-", "no loader processes")
    try:
        free = _free(Path("/dev/shm"))
    except OSError as error:
        return Check("/dev/shm", "fail", f"cannot be looked at: {error.strerror}", "mount a tmpfs there")
    found = f"{_size(free)} free, {_size(wanted)} wanted for batches that are ready"
    if free < wanted:
        return Check(
            "/dev/shm", "fail", found, f"in Docker --shm-size={-(-2 * wanted // _GIB)}g or --ipc=host; or set "
            "runtime.workers or runtime.prefetch_batches lower"
        )  # fmt: skip
    return Check("/dev/shm", "ok", found)


def _writing(folder: Path) -> Check:
    """Do there what a run does: write, sync, rename, lock."""
    probe = folder / f".doctor-{os.getpid()}"
    renamed = probe.with_name(probe.name + ".renamed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(b"written")
            file.flush()
            os.fsync(file.fileno())
        probe.replace(renamed)
        renamed.unlink()
    except OSError as error:
        for left in (probe, renamed):
            _unlink_if_possible(left)
        return Check(
            "write rights", "fail", f"{folder}: cannot be written ({error.strerror})", "choose another place with "
            "VIT24H_RUNS, or change the folder's owner or mode"
        )  # fmt: skip
    return Check("write rights", "ok", str(folder))


def _disk(configs: Sequence[Config], folder: Path) -> Check:
    try:
        free = _free(_nearest_existing(folder))
    except OSError as error:
        return Check("disk", "fail", f"{folder}: cannot be looked at: {error.strerror}", "choose another VIT24H_RUNS")
    weights = [4 * _parameters(config) for config in configs]
    # A checkpoint: weights, their average, and two moments; of one run at a time. Then every run's weights.
    wanted = _CHECKPOINTS * 4 * max(weights) + sum(weights) + _REPORT_BYTES
    found = f"{_size(free)} free for {_size(wanted)} of checkpoints, weights and report"
    if free < wanted:
        return Check("disk", "fail", found, f"make room in {folder}, or choose another place with VIT24H_RUNS")
    if free < 2 * wanted:
        return Check("disk", "warn", found, "make room: a full disk costs checkpoints, though not the run")
    return Check("disk", "ok", found)


def _parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config.model, 1000).parameters())


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _unlink_if_possible(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


# -- images ---------------------------------------------------------------------------------------------------------


def _some_images(dataset: Dataset) -> Check:
    begin = time.perf_counter()
    bad = {
        split: [found for index in _spread(images, _SAMPLED_IMAGES) if (found := _problem(images, index))]
        for split, images in _splits(dataset)
    }
    decoded = sum(len(_spread(images, _SAMPLED_IMAGES)) for _, images in _splits(dataset))
    found = f"{decoded} decoded in {time.perf_counter() - begin:.1f} s"
    if any(bad.values()):
        found += f"; of these cannot be: {_listed(bad['val'] + bad['train'])}"
        one_may_be = not bad["val"] and len(bad["train"]) == 1  # in training another takes its place
        return Check("images", "warn" if one_may_be else "fail", found, "restore what --full finds")
    return Check("images", "ok", f"{found}; --full decodes all")


def _all_images(dataset: Dataset) -> Check:
    begin = time.perf_counter()
    bad: dict[str, list[str]] = {}
    for split, images in _splits(dataset):
        bad[split] = _problems(images, len(os.sched_getaffinity(0)))
    total = len(dataset.train) + len(dataset.val)
    found = f"all {total:,} decoded in {time.perf_counter() - begin:.0f} s"
    if not any(bad.values()):
        return Check("images", "ok", found)
    found += f"; {len(bad['train'])} of training and {len(bad['val'])} of validation cannot be: "
    found += _listed(bad["val"] + bad["train"])
    too_many = len(bad["train"]) > max(len(dataset.train) / _IMAGES_PER_CORRUPT, 1)
    if bad["val"] or too_many:
        return Check("images", "fail", found, "restore them: training would stop at more than 1 in 1,000, evaluation "
                     "at any")  # fmt: skip
    return Check("images", "warn", found, "restore them: in training others take their place")


_images: ImageSource  # of a process that decodes: the index is handed over by forking, once


def _problems(images: ImageSource, processes: int) -> list[str]:
    global _images
    _images = images
    borders = np.linspace(0, len(images), max(processes * 16, 1) + 1, dtype=int).tolist()
    spans = [range(begin, end) for begin, end in pairwise(borders) if end > begin]
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        return [problem for found in pool.map(_problems_of, spans) for problem in found]


def _problems_of(span: range) -> list[str]:
    return [problem for index in span if (problem := _problem(_images, index))]


def _problem(images: ImageSource, index: int) -> str | None:
    try:
        load_image(images, index).pixels()
    except CorruptImageError as error:
        return f"{images.path(index)} ({error})"
    return None


def _splits(dataset: Dataset) -> list[tuple[str, ImageSource]]:
    return [("train", dataset.train), ("val", dataset.val)]


def _spread(images: ImageSource, count: int) -> list[int]:
    return sorted(set(np.linspace(0, len(images) - 1, count, dtype=int).tolist()))


def _listed(problems: Sequence[str]) -> str:
    return "; ".join(problems[:_CORRUPT_SHOWN]) + (" ..." if len(problems) > _CORRUPT_SHOWN else "")


# -- words ----------------------------------------------------------------------------------------------------------

_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "-": "90"}


def as_line(check: Check, *, colour: bool = False) -> str:
    """A check as a line of a table, its remedy on a second one."""
    state = f"{check.state:<5}"
    if colour:
        state = f"\033[{_COLOURS[check.state]}m{state}\033[0m"
    line = f"{state} {check.name:<13} {check.found}"
    return f"{line}\n{'':<20}-> {check.remedy}" if check.remedy else line


def summary(checks: Sequence[Check]) -> str:
    numbers = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "fail")}
    words = [f"{numbers['ok']} ok", _count(numbers["warn"], "warning"), _count(numbers["fail"], "failure")]
    return ", ".join(words)


def _split(message: str) -> tuple[str, str]:
    """A UserError's line as what was found and what to do; what follows its last `: ` is the latter."""
    found, _, remedy = message.rpartition(": ")
    return (found, remedy) if found else (message, "see above")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(number: float) -> str:
    return f"{number / _GIB:,.1f} GiB" if number >= _GIB / 10 else f"{number / 2**20:,.0f} MiB"
