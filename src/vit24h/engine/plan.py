"""Measuring what a run would be made of: at each image size the loader alone, the step alone, both together as the
training loop has them; then evaluation, a checkpoint, memory. Must not know: predictions, figures, files of a plan.

The sizes take turns, round after round, so that a machine that gets slower meanwhile does not make one size look slow,
and what is told is the median over the rounds. What happens only once, at the first step at a size, is timed apart.

How the loader is kept honest. Every slice of measuring starts a loader of its own, at an epoch of its own: what it
reads is scattered over the whole dataset as an epoch is, so what part of it the page cache holds is what part of the
dataset the page cache holds. How much came from the disk all the same is counted and told (`DiskReads`).
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from vit24h.config import Config
from vit24h.data import Batch, BatchPlan, Dataset, DeviceCopy, ImageSource, TrainLoader
from vit24h.engine import device as devices
from vit24h.engine import inputs
from vit24h.engine.checkpoint import save_checkpoint
from vit24h.engine.evaluate import evaluate
from vit24h.engine.step import TrainStep
from vit24h.engine.trial import raise_if_out_of_memory, rehearsal_step, try_largest_step
from vit24h.gpu_loss import noticing_gpu_loss
from vit24h.models import build_model, select_depthwise
from vit24h.prediction import median
from vit24h.records import capture_environment

ROUNDS = 3
_TOO_LATE = 2.0  # times the seconds asked for: no further round then
_SHARES = {"loader": 1.0, "step": 1.0, "together": 2.0}  # of a round, for each size; the prediction is made of the last
_EVALUATION_SHARE = 2.0
_LONGEST_FILL_S = 10.0
_SETTLING = 0.3  # times a slice of both together, before its time is taken
_SAMPLED_IMAGES = 64


@dataclass
class SizeMeasurement:
    """One image size; a value each round."""

    image_size: int  # pixels
    batch_size: int
    loader_s: list[float] = field(default_factory=list)  # seconds of a batch, nobody else using the machine
    step_s: list[float] = field(default_factory=list)  # seconds of a step, its batch on the device already
    together_s: list[float] = field(default_factory=list)  # seconds of a step with all that it waits for
    waiting: list[float] = field(default_factory=list)  # share of that spent waiting for the loader
    first_s: float | None = None  # the very first step at this size
    memory_bytes: int = 0  # the most that was allocated on the GPU; on a CPU the process's resident memory

    @property
    def first_step_s(self) -> float:
        """What the first step took more than the others: choosing kernels, compiling."""
        return max(0.0, (self.first_s or 0.0) - median(self.step_s))


@dataclass
class DiskReads:
    """How much of what the loaders read came from a disk, and not from the page cache."""

    from_disk_bytes: int = 0
    images: int = 0  # decoded meanwhile
    known: bool = True  # False: this system does not tell


@dataclass
class Measurement:
    """What `measure` found out."""

    sizes: dict[int, SizeMeasurement]
    evaluation_s: float  # raw and averaged weights, all validation images
    checkpoint_s: float | None  # None: not tried, because it could not be written
    checkpoint_bytes: int
    setup_s: float
    measured_s: float
    rounds: int
    workers: int
    samples_per_epoch: int
    facts: dict[str, Any]  # precision, parameters
    environment: dict[str, Any]
    disk: DiskReads
    image_bytes: float  # mean size of an encoded training image


def measure(
    config: Config,
    image_sizes: Sequence[int],
    *,
    seconds: float,
    folder: Path,
    progress: Callable[[int, int, int], None] = lambda _round, _rounds, _size: None,
) -> Measurement:
    """Measure what training `config` takes at each image size on this machine and these images.

    Args:
        image_sizes: in pixels: those of `config`, or more.
        seconds: about how long to measure. A slow machine takes longer: every size gets a whole step or two.
        folder: where a checkpoint is written, and removed, to see how long that takes.
        progress: told (round, rounds, image size) whenever the next size has its turn.

    Raises:
        UserError: no such dataset, too small a one, a GPU that is not there, out of memory; as training would.
        GpuLost: the GPU cannot be used any more.
    """
    begin = time.monotonic()
    with noticing_gpu_loss():
        device = devices.select_device(config.runtime.device)
        devices.limit_threads(device)
        devices.allow_tf32(device, config.runtime.tf32)
        dataset = inputs.open_configured_dataset(config.data)
        bench = _Bench(config, dataset, device)
        bench.prepare(len(image_sizes))
        setup_s = time.monotonic() - begin

        sizes = {size: SizeMeasurement(size, inputs.batch_size(config, size)) for size in image_sizes}
        unit_s = seconds / ROUNDS / (len(sizes) * sum(_SHARES.values()) + _EVALUATION_SHARE)
        evaluations, rounds, begin = [], 0, time.monotonic()
        while rounds < ROUNDS and (rounds == 0 or time.monotonic() - begin < _TOO_LATE * seconds):
            for size in sizes.values():
                progress(rounds + 1, ROUNDS, size.image_size)
                try:
                    bench.turn(size, unit_s)
                except (MemoryError, RuntimeError) as error:
                    raise_if_out_of_memory(error, config, size.image_size, device)
                    raise
            evaluations.append(bench.evaluation_s(rounds, _EVALUATION_SHARE * unit_s))
            rounds += 1
        checkpoint_s, checkpoint_bytes = bench.checkpoint(folder)
        return Measurement(
            sizes=sizes,
            evaluation_s=median(evaluations),
            checkpoint_s=checkpoint_s,
            checkpoint_bytes=checkpoint_bytes,
            setup_s=setup_s,
            measured_s=time.monotonic() - begin,
            rounds=rounds,
            workers=bench.workers,
            samples_per_epoch=bench.order.samples_per_epoch,
            facts=bench.facts,
            environment=capture_environment(
                gpu=devices.gpu_facts(device), dataset=inputs.dataset_facts(config.data, dataset), seed=config.seed
            ),
            disk=bench.disk,
            image_bytes=_mean_bytes(dataset.train),
        )


class _Bench:
    """A model, its step and its data, to be measured in turns of seconds."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.device = config, device
        self.order = inputs.epoch_order(config, dataset)
        self.workers = devices.select_workers(config.runtime.workers, device)
        self.disk = DiskReads()
        self._dataset = dataset
        self._loaders = 0  # started so far: each reads an epoch of its own
        precision = devices.select_precision(config, device)
        AcceleratorState._reset_state()  # it holds the precision of the first one in a process for all others
        self._accelerator = devices.make_accelerator(config, device)
        torch.manual_seed(config.seed)
        self._model = build_model(config.model, num_classes=len(dataset.classes))
        select_depthwise(self._model, config.runtime.depthwise)
        self._model.to(device)
        self.facts = {"precision": precision, "parameters": sum(p.numel() for p in self._model.parameters())}
        self._step: TrainStep | None = None
        self._to_device = DeviceCopy(device)

    def prepare(self, shapes: int) -> None:
        """What a run does before its clock counts."""
        num_classes = len(self._dataset.classes)
        try_largest_step(self.config, self._model, num_classes, self._accelerator)
        self._average = copy.deepcopy(self._model)
        self._step = rehearsal_step(self.config, self._model, num_classes, self._accelerator, shapes=shapes)
        self._model.train()

    def turn(self, size: SizeMeasurement, unit_s: float) -> None:
        """One round's slices at one size; the loader's last batch is what the step alone is measured on."""
        batch = self._loader_alone(size, _SHARES["loader"] * unit_s)
        self._step_alone(size, batch.to(self.device), _SHARES["step"] * unit_s)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._together(size, _SHARES["together"] * unit_s)
        size.memory_bytes = max(size.memory_bytes, self._memory_bytes())

    def evaluation_s(self, turn: int, seconds: float) -> float:
        """Seconds of an evaluation on all validation images, drawn out from one on some of every `ROUNDS`-th of them.

        The first batches, one of each worker, come late and at once; it is the pace of those after them that counts.
        """
        total = len(self._dataset.val)
        parts = min(ROUNDS, total)
        loader = inputs.eval_loader(
            self.config, self._dataset, device=self.device, rank=turn % parts, world_size=parts
        )  # another part each turn
        normalize = inputs.device_augment(self.config, len(self._dataset.classes)).normalise
        models = {"raw": self._accelerator.unwrap_model(self._model), "ema": self._average}
        row = max(self.workers, 1)
        marks = _Marks()
        with loader:
            evaluate(models, marks.note(loader, seconds, at_least=2 * row), normalize, self._accelerator)
        return marks.drawn_out(total, row, end=time.perf_counter())

    def checkpoint(self, folder: Path) -> tuple[float | None, int]:
        """Seconds and bytes of what a run saves: weights, their average, two moments of the optimiser."""
        weights = self._model.state_dict()
        state = {name: {key: value.clone() for key, value in weights.items()} for name in ("model", "first", "second")}
        state["average"] = self._average.state_dict()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".plan-") as inside:
                begin = time.perf_counter()
                path = save_checkpoint(Path(inside), 0, state)
                return time.perf_counter() - begin, path.stat().st_size
        except OSError:
            return None, 0

    # -- the three slices -------------------------------------------------------------------------------------------

    def _loader_alone(self, size: SizeMeasurement, seconds: float) -> Batch:
        """Batches as fast as they come. The workers' first ones come together, so whole rows of them are timed."""
        row = max(self.workers, 1)
        with self._loader(size) as loader:
            batch = _last(itertools.islice(loader, row))
            begin, done = time.perf_counter(), 0
            while done == 0 or time.perf_counter() - begin < seconds:
                batch = _last(itertools.islice(loader, row))
                done += row
            size.loader_s.append((time.perf_counter() - begin) / done)
        return batch

    def _step_alone(self, size: SizeMeasurement, batch: Batch, seconds: float) -> None:
        begin = time.perf_counter()
        self._train_on(batch)
        devices.synchronize(self.device)
        if size.first_s is None:
            size.first_s = time.perf_counter() - begin
        begin, done, row = time.perf_counter(), 0, 1
        while done == 0 or time.perf_counter() - begin < seconds:
            for _ in range(row):
                self._train_on(batch)
            devices.synchronize(self.device)
            done += row
            row = self._longer(row)
        size.step_s.append((time.perf_counter() - begin) / done)

    def _together(self, size: SizeMeasurement, seconds: float) -> None:
        """As in the loop: wait for a batch, send it to the device, step; the device is waited for now and then.

        A run finds its queue full where the loader is the faster one, and empty where it is the slower one. A loader
        that has just started fills its queue meanwhile, beside the step and perhaps on the same cores: batches that a
        slice would pay for and not use. So time is taken once the queue is as it is in a run.
        """
        ahead = median(size.loader_s) < median(size.step_s)
        row = 1 if ahead else max(self.workers, 1)  # the workers' batches come together where they are waited for
        with self._loader(size) as loader:
            if ahead:
                self._let_fill(median(size.loader_s))
            settled = time.perf_counter() + _SETTLING * seconds
            self._train(loader, row)  # slow: it copies the memory that it shares with the workers since they began
            while time.perf_counter() < settled:
                self._train(loader, row)
            begin, done, waited_s = time.perf_counter(), 0, 0.0
            while done == 0 or time.perf_counter() - begin < seconds:
                waited_s += self._train(loader, row)
                done += row
                if ahead:
                    row = self._longer(row)
            taken_s = time.perf_counter() - begin
        size.together_s.append(taken_s / done)
        size.waiting.append(waited_s / taken_s)

    def _let_fill(self, loader_s: float) -> None:
        """Wait until the workers, at `loader_s` seconds a batch, have prepared all that they prepare ahead."""
        time.sleep(min(self.workers * self.config.runtime.prefetch_batches * loader_s, _LONGEST_FILL_S))

    def _train(self, loader: _CountedLoader, steps: int) -> float:
        """That many steps, to the end of what the device is given; the seconds spent waiting for batches."""
        waited_s = 0.0
        for _ in range(steps):
            waiting_since = time.perf_counter()
            batch = next(loader)
            waited_s += time.perf_counter() - waiting_since
            self._train_on(self._to_device(batch))
        devices.synchronize(self.device)
        return waited_s

    def _longer(self, row: int) -> int:
        """Steps until the device is waited for again: on a GPU as in the loop, but time has to be looked at, too."""
        return min(2 * row, self.config.runtime.log_every_steps) if self.device.type == "cuda" else row

    def _train_on(self, batch: Batch) -> None:
        self._step(batch, self.config.optimizer.learning_rate)

    def _loader(self, size: SizeMeasurement) -> _CountedLoader:
        self._loaders += 1
        plan = BatchPlan(size.image_size, size.batch_size)
        loader = inputs.train_loader(
            self.config,
            self._dataset,
            self.order,
            lambda _epoch, _sample: plan,
            device=self.device,
            start_epoch=self._loaders,
            start_position=0,
        )
        return _CountedLoader(loader, self.disk, self.config.data.repeated_augmentation)

    def _memory_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status_bytes("self", "VmRSS")


class _CountedLoader:
    """A loader that is closed at the end, whatever happens, and of which is known what it took from the disk."""

    def __init__(self, loader: TrainLoader, disk: DiskReads, repeats: int) -> None:
        self._loader, self._disk, self._repeats = loader, disk, repeats
        self._samples = 0

    def __enter__(self) -> _CountedLoader:
        self._before = self._read_bytes()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            after = self._read_bytes()
            if after is None or self._before is None:
                self._disk.known = False
            else:
                self._disk.from_disk_bytes += after - self._before
                self._disk.images += self._samples // self._repeats
        finally:
            self._loader.close()

    def __iter__(self) -> _CountedLoader:
        return self

    def __next__(self) -> Batch:
        batch = next(self._loader)
        self._samples += len(batch.labels)
        return batch

    def _read_bytes(self) -> int | None:
        """What this process and the workers have had fetched from a disk, in bytes; None where it is not told."""
        processes = ["self", *(str(process) for process, _ in self._loader.workers())]
        try:
            return sum(_io_bytes(process) for process in processes)
        except (OSError, StopIteration, ValueError):
            return None


class _Marks:
    """When each batch of an evaluation was asked for, all before it done, and how many images those were."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._marks: list[tuple[float, int]] = []
        self._images = 0

    def note(self, batches: Iterable[tuple[Tensor, Tensor]], seconds: float, *, at_least: int) -> Iterator[Any]:
        """`batches` for `seconds`, longer for `at_least` so many, but not more than twice as long."""
        coming = iter(batches)
        while True:
            now, done = time.perf_counter(), len(self._marks)
            spent_s = now - self._begin
            if done and spent_s > seconds and (done >= at_least or spent_s > 2 * seconds):
                return
            batch = next(coming, None)
            if batch is None:
                return
            self._marks.append((now, self._images))
            self._images += len(batch[1])
            yield batch

    def drawn_out(self, images: int, row: int, *, end: float) -> float:
        """Seconds for that many images, where the first `row` batches are not those that tell the pace."""
        late = row if len(self._marks) > row else len(self._marks) // 2
        since, before = self._marks[late]
        each_s = (end - since) / (self._images - before)
        return end - self._begin + (images - self._images) * each_s


def _last(batches: Iterable[Batch]) -> Batch:
    *_, last = batches
    return last


def _mean_bytes(images: ImageSource) -> float:
    """Of an encoded image, from some that are spread over the split; one that cannot be read tells nothing."""
    sizes = []
    for index in np.linspace(0, len(images) - 1, min(_SAMPLED_IMAGES, len(images)), dtype=int).tolist():
        try:
            sizes.append(len(images.read(index)))
        except OSError:
            continue
    return sum(sizes) / len(sizes) if sizes else 0.0


def _io_bytes(process: str) -> int:
    lines = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes:")).split()[1])


def _status_bytes(process: str, name: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
