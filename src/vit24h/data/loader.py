"""From an order of images to batches of pixels, prepared ahead in processes of their own.

A batch is asked for by its address (epoch, position) and size, and what it holds is a function of these and the seed:
not of the number of workers, nor of where a run was started. The main process decides each batch's size when it asks
for it, a few batches before the batch is used; workers live as long as the loader and are told nothing else.

Workers are forked, on purpose: they share the image index with the main process instead of holding copies, and start
in milliseconds where a fresh interpreter would import torch for seconds. What makes forking dangerous is a child that
uses what its parent's threads or the GPU driver were doing; workers touch neither the GPU nor threads, only files,
PIL and uint8 CPU tensors. Pinning memory is the main process's business.

Must not know: models, the clock, what an epoch means to training.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from vit24h.data.augment import Draws, EvalTransform, TrainTransform
from vit24h.data.decode import CorruptImageError, Picture, UnreadableImageError, load_image
from vit24h.data.index import ImageSource
from vit24h.data.order import EpochOrder
from vit24h.data.randomness import Generators, Stream
from vit24h.errors import UserError
from vit24h.processes import signal_when_parent_dies

REPLACEMENT_TRIES = 10
EVAL_PREFETCH_BATCHES = 2
_NONE = -1
_STOPS = (signal.SIGINT, signal.SIGTERM)

Decoded = TypeVar("Decoded")


class LoaderFault(UserError):  # noqa: N818
    """A loader is broken by what may pass: another one, from the same place on, may work."""


class DatasetGoneError(LoaderFault):
    """The images cannot be read at all for now."""


class WorkerKilledError(LoaderFault):
    """A worker was ended from outside."""


@dataclass(frozen=True)
class BatchPlan:
    """What the next batch shall be: pixels on a side, and images over all processes."""

    image_size: int
    batch_size: int


@dataclass(frozen=True)
class Batch:
    """Crops of a training batch, and where in the run they belong."""

    images: torch.Tensor  # (B, 3, H, W) uint8, channels last in memory
    labels: torch.Tensor  # (B,) int64
    erasing_boxes: torch.Tensor  # (B, 4) int32: top, left, height, width in pixels; all 0 for none
    epoch: int  # counted from 0
    position: int  # of the batch's first sample in the epoch's order
    image_size: int  # H and W
    last_of_epoch: bool  # the next batch is the first of the next epoch
    incidents: list[dict[str, Any]]  # corrupt images that were replaced: kind, path, reason, replaced_by
    draws: list[Draws] | None = None  # where flip and RandAugment are left to the device: what was drawn for each image

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a copy to the GPU can overlap the step."""
        return self._with_tensors(torch.Tensor.pin_memory)

    def tensors(self) -> list[torch.Tensor]:
        return list(self._tensors().values())

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if torch.is_tensor(getattr(self, f.name))}

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(self, **{name: change(tensor) for name, tensor in self._tensors().items()})


class TrainLoader:
    """An endless iterator of training batches, epoch after epoch, prepared ahead by workers that are never restarted.

    An epoch's last samples, too few for a batch, are left out. A corrupt image is replaced by the next one in the
    index and told in the batch's `incidents`. At most workers × prefetch_batches batches are held ready, in shared
    memory (/dev/shm).

    Args:
        images: the training split.
        order: which image at which position of an epoch.
        transform: makes crops of a picture.
        seed: of the run; with epoch and position it fixes a sample's augmentation.
        workers: processes; 0 prepares each batch in the calling process when it is asked for.
        prefetch_batches: batches each worker prepares ahead.
        pin_memory: put batches into page-locked memory, for a GPU.
        plan: (epoch, position) -> BatchPlan; called in the calling process, once for each batch, in order, ahead of
            use by up to workers × prefetch_batches + 1 batches. The same plan gives the same batches.
        start_epoch, start_position: address of the first batch; nothing before it is read.
        rank, world_size: of this process among several: it gets every `world_size`-th sample of each batch.

    Raises:
        UserError: from the constructor or from `next`: a batch larger than an epoch; images that are corrupt, one
            after another; shared memory that is full.
        LoaderFault: from `next`: the images cannot be read at all; a worker was killed.
    """

    def __init__(
        self,
        images: ImageSource,
        order: EpochOrder,
        transform: TrainTransform,
        *,
        seed: int,
        workers: int,
        prefetch_batches: int,
        pin_memory: bool,
        plan: Callable[[int, int], BatchPlan],
        start_epoch: int = 0,
        start_position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        requests = _requests(order, plan, start_epoch, start_position, rank, world_size)
        first = next(requests)  # what is wrong with the plan is found before there are workers
        self._activity = _Activity(images, workers)
        self._processes = _Processes(
            _TrainBatches(images, transform, order.repeats, seed, self._activity),
            itertools.chain([first], requests),
            workers=workers,
            prefetch_batches=prefetch_batches,
            pin_memory=pin_memory,
        )
        self._batches = self._processes.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def workers(self) -> list[tuple[int, Path | None]]:
        """Process id of each worker, and the image it is at."""
        return [(process, self._activity.of(worker)) for worker, process in enumerate(self._processes.ids())]

    def close(self) -> None:
        """End the workers. Nothing is left of them when this returns; a second call does nothing."""
        self._batches = iter(())
        self._processes.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Activity:
    """Which image each worker is at: written by the workers, read by the main process, in memory they share."""

    def __init__(self, images: ImageSource, workers: int):
        self._images = images
        self._indices = np.frombuffer(mmap.mmap(-1, 8 * max(workers, 1)), np.int64)
        self._indices[:] = _NONE

    def at(self, index: int) -> None:
        worker = get_worker_info()
        self._indices[worker.id if worker else 0] = index

    def of(self, worker: int) -> Path | None:
        index = int(self._indices[worker])
        return None if index == _NONE else self._images.path(index)


class EvalLoader:
    """All images of a split, each exactly once for each iteration, in the order of the index.

    Yields (images, labels): (B, 3, H, W) uint8, channels last in memory, and (B,) int64; the last batch may be
    smaller. Workers start with the first iteration and stay for the next ones; each prepares two batches ahead.

    Args:
        images: the validation split.
        transform: makes the picture's centre crop.
        batch_size: images.
        workers: processes; 0 does the work in the calling process.
        pin_memory: put batches into page-locked memory, for a GPU.
        rank, world_size: of this process among several: it gets every `world_size`-th image.

    Raises:
        UserError: while iterating: a corrupt image, since accuracy over the others would be another figure;
            shared memory that is full.
        LoaderFault: while iterating: the images cannot be read at all; a worker was killed.
    """

    def __init__(
        self,
        images: ImageSource,
        transform: EvalTransform,
        *,
        batch_size: int,
        workers: int,
        pin_memory: bool,
        rank: int = 0,
        world_size: int = 1,
    ):
        indices = range(rank, len(images), world_size)
        self._requests = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        self._activity = _Activity(images, workers)
        self._processes = _Processes(
            _EvalBatches(images, transform, self._activity),
            self._requests,
            workers=workers,
            prefetch_batches=EVAL_PREFETCH_BATCHES,
            pin_memory=pin_memory,
        )

    def __len__(self) -> int:
        """Batches in an iteration."""
        return len(self._requests)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._processes.start()

    def workers(self) -> list[tuple[int, Path | None]]:
        """Process id of each worker, and the image it is at."""
        return [(process, self._activity.of(worker)) for worker, process in enumerate(self._processes.ids())]

    def close(self) -> None:
        """End the workers. Nothing is left of them when this returns; a second call does nothing."""
        self._processes.close()

    def __enter__(self) -> EvalLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- what the main process asks for -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    """A batch by its address, and all a worker has to know to make it."""

    epoch: int
    position: int
    image_size: int
    last_of_epoch: bool
    positions: np.ndarray  # (B,) int64 in the epoch's order; those of this process
    image_indices: np.ndarray  # (B,) int32


def _requests(
    order: EpochOrder,
    plan: Callable[[int, int], BatchPlan],
    start_epoch: int,
    start_position: int,
    rank: int,
    world_size: int,
) -> Iterator[_Request]:
    shuffled_epoch, image_indices = None, None
    addresses = _addresses(order, plan, start_epoch, start_position)
    # In pairs, because a batch is the last of its epoch if the one after it is of the next epoch.
    for (epoch, position, batch), (next_epoch, _, _) in itertools.pairwise(addresses):
        if shuffled_epoch != epoch:
            shuffled_epoch, image_indices = epoch, order.image_indices(epoch)
        positions = np.arange(position + rank, position + batch.batch_size, world_size)
        yield _Request(epoch, position, batch.image_size, next_epoch != epoch, positions, image_indices[positions])


def _addresses(
    order: EpochOrder, plan: Callable[[int, int], BatchPlan], epoch: int, position: int
) -> Iterator[tuple[int, int, BatchPlan]]:
    """(epoch, position, plan) of every batch from the given address on, endlessly."""
    samples = order.samples_per_epoch
    while True:
        while position < samples:
            batch = plan(epoch, position)
            if batch.batch_size > samples:
                raise UserError(
                    f"optimizer.batch_size {batch.batch_size}: more than the {samples} samples of an epoch "
                    f"({order.num_images} training images): set optimizer.batch_size to at most {samples}"
                )
            if position + batch.batch_size > samples:
                break
            yield epoch, position, batch
            position += batch.batch_size
        epoch, position = epoch + 1, 0


# -- what a worker does -----------------------------------------------------------------------------------------------


class _TrainBatches(TorchDataset):
    """The work on a training batch. To torch's DataLoader, a dataset whose items are whole batches."""

    def __init__(
        self,
        images: ImageSource,
        transform: TrainTransform,
        repeats: int,
        seed: int,
        activity: _Activity,
    ):
        self._images = images
        self._transform = transform
        self._repeats = repeats
        self._generators = Generators(Stream.SAMPLE, seed)
        self._activity = activity

    def __getitem__(self, request: _Request) -> Batch | UserError:
        size, count = request.image_size, len(request.image_indices)
        pixels = np.empty((count, size, size, 3), np.uint8)
        labels = np.empty(count, np.int64)
        boxes = np.empty((count, 4), np.int32)
        incidents: list[dict[str, Any]] = []
        draws: list[Draws] = []
        groups = itertools.groupby(range(count), key=lambda sample: int(request.positions[sample]) // self._repeats)
        for group, samples in groups:
            try:
                crops = self._crops(request, group, samples := list(samples), incidents)
            except UserError as error:
                return error  # as a value: raised here, it would reach the user inside a traceback
            for sample, (crop, label, drawn) in zip(samples, crops, strict=True):
                pixels[sample], labels[sample], boxes[sample] = crop, label, drawn.erasing_box
                draws.append(drawn)
        self._transform.randaugment(pixels, draws)
        self._activity.at(_NONE)
        return Batch(
            images=_channels_first(pixels),
            labels=torch.from_numpy(labels),
            erasing_boxes=torch.from_numpy(boxes),
            epoch=request.epoch,
            position=request.position,
            image_size=size,
            last_of_epoch=request.last_of_epoch,
            incidents=incidents,
            draws=draws if self._transform.on_device else None,
        )

    def _crops(
        self, request: _Request, group: int, samples: list[int], incidents: list[dict[str, Any]]
    ) -> list[tuple[np.ndarray, int, Draws]]:
        """Crop before RandAugment, label and draws of samples of one image: with repeated augmentation, neighbours.

        The image is decoded once, as finely as the finest crop of its whole group needs it, even where the others are
        in another batch or another process: so a sample's pixels do not depend on where batches begin.
        """
        index = int(request.image_indices[samples[0]])
        size = request.image_size

        def decode(picture: Picture) -> tuple[np.ndarray, int, list[Draws]]:
            first = group * self._repeats
            rngs = (self._generators.at(request.epoch, first + crop) for crop in range(self._repeats))
            draws = [self._transform.draw(picture.width, picture.height, size, rng) for rng in rngs]
            shrink = self._transform.shrink(picture, draws, size)
            return picture.pixels(shrink), shrink, draws

        (pixels, shrink, draws), label = self._load_or_replace(index, decode, incidents)
        mine = [draws[int(request.positions[sample]) % self._repeats] for sample in samples]
        return [(self._transform.render(pixels, shrink, drawn, size), label, drawn) for drawn in mine]

    def _load_or_replace(
        self, index: int, decode: Callable[[Picture], Decoded], incidents: list[dict[str, Any]]
    ) -> tuple[Decoded, int]:
        """An image decoded, and its label; or those of the first one after it in the index that is not corrupt."""
        corrupt: list[tuple[int, str]] = []
        readable = False
        for candidate in range(index, index + 1 + REPLACEMENT_TRIES):
            candidate %= len(self._images)
            self._activity.at(candidate)
            try:
                decoded = decode(_load(self._images, candidate))
            except CorruptImageError as error:
                corrupt.append((candidate, str(error)))
                readable |= not isinstance(error, UnreadableImageError)
                continue
            incidents += [
                {
                    "kind": "corrupt_image",
                    "path": str(self._images.path(bad)),
                    "reason": reason,
                    "replaced_by": str(self._images.path(candidate)),
                }
                for bad, reason in corrupt
            ]
            return decoded, int(self._images.labels[candidate])
        first, reason = corrupt[0]
        raise (UserError if readable else DatasetGoneError)(
            f"{self._images.path(first)}: {reason}, and so are the {REPLACEMENT_TRIES} images after it in its folder "
            "or the next: expected a readable dataset: check that it is still in place and complete"
        )


class _EvalBatches(TorchDataset):
    """The work on an evaluation batch. To torch's DataLoader, a dataset whose items are whole batches."""

    def __init__(self, images: ImageSource, transform: EvalTransform, activity: _Activity):
        self._images = images
        self._transform = transform
        self._activity = activity

    def __getitem__(self, indices: range) -> tuple[torch.Tensor, torch.Tensor] | UserError:
        size = self._transform.image_size
        pixels = np.empty((len(indices), size, size, 3), np.uint8)
        for sample, index in enumerate(indices):
            self._activity.at(index)
            try:
                pixels[sample] = self._transform(_load(self._images, index))
            except DatasetGoneError as error:
                return error
            except CorruptImageError as error:
                return UserError(
                    f"{self._images.path(index)}: {error}: every validation image counts, so put an intact copy "
                    "of this one there (or pack the images again), or remove it"
                )
        self._activity.at(_NONE)
        labels = self._images.labels[indices.start : indices.stop : indices.step].astype(np.int64)
        return _channels_first(pixels), torch.from_numpy(labels)


def _load(images: ImageSource, index: int) -> Picture:
    """`load_image`, but a dataset that is gone for a while is not taken for a corrupt image."""
    try:
        return load_image(images, index)
    except UnreadableImageError as error:
        if not images.is_there():
            raise DatasetGoneError(
                f"{images.path(index)}: {error}, nor is there anything else of its dataset: check that it is still in "
                "place"
            ) from error
        return load_image(images, index)  # it may be back since


def _channels_first(pixels: np.ndarray) -> torch.Tensor:
    """(B, H, W, 3) to (B, 3, H, W), another view of the same memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


# -- the processes ----------------------------------------------------------------------------------------------------


class _Processes:
    """torch's DataLoader, made to end cleanly and to fail in words."""

    def __init__(
        self, work: TorchDataset, requests: Iterable[Any], *, workers: int, prefetch_batches: int, pin_memory: bool
    ):
        of_workers: dict[str, Any] = {
            "multiprocessing_context": "fork",
            "persistent_workers": True,
            "prefetch_factor": prefetch_batches,
            "worker_init_fn": _leave_signals_to_the_main_process,
        }
        self._loader = DataLoader(
            work,
            batch_size=None,  # an item is a batch already
            sampler=requests,
            num_workers=workers,
            collate_fn=_into_shared_memory if workers else _as_it_is,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # or it would draw from the global one, which belongs to the model
            **(of_workers if workers else {}),
        )
        self._iterator: Any = None
        # Without close(), Python would at its exit ask the workers to end with the signal that they ignore, and wait.
        self._at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(self._at_exit)

    def start(self) -> Iterator[Any]:
        """Go through the requests from the beginning. Workers start with the first call and work ahead at once."""
        try:
            with _without_interruption_by_ended_children(), _without_signals_to_workers():
                self._iterator = iter(self._loader)
        except BaseException:  # a stop that was kept back meanwhile: nobody has a loader yet that could be closed
            self.close()
            raise
        return _results(self._iterator, _workers(self._iterator))

    def ids(self) -> list[int]:
        return [worker.pid for worker in _workers(self._iterator)]

    def close(self) -> None:
        atexit.unregister(self._at_exit)
        iterator, self._iterator, self._loader = self._iterator, None, None
        workers = _workers(iterator)
        if workers:
            # Dropping the iterator would do this too, but only once nothing refers to it, a traceback for instance.
            iterator._shutdown_workers()
        for worker in workers:
            if worker.is_alive():  # stuck, in a read from a disk that does not answer for instance
                worker.kill()
            worker.join()


def _workers(iterator: Any) -> list[BaseProcess]:
    """The processes behind a DataLoader's iterator; none where the work is done in this one."""
    return list(getattr(iterator, "_workers", ()))


def _results(iterator: Iterator[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    while True:
        try:
            result = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            # Of torch when it looks and a worker is gone, or of a connection to one that goes at that moment.
            if not multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1):
                raise
            raise WorkerKilledError(
                "a loader process was killed, most often because memory ran out: set runtime.workers or "
                "runtime.prefetch_batches lower, or give the machine or container more memory"
            ) from error
        if isinstance(result, UserError):
            raise result
        yield result


@contextlib.contextmanager
def _without_interruption_by_ended_children() -> Iterator[None]:
    """Undo that torch's DataLoader, once started, raises an error wherever the program is when a worker is killed.

    The middle of a step or of a checkpoint is a bad place to stop. The loader notices by itself within seconds.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _without_signals_to_workers() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM back while workers begin: one that has not yet said it ignores them would die of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _close_if_alive(reference: weakref.ref[_Processes]) -> None:
    processes = reference()
    if processes is not None:
        processes.close()


def _leave_signals_to_the_main_process(_worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The main process finishes its step, for which it
    # may need a batch, and closes the loader.
    for stop in _STOPS:
        signal.signal(stop, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    # Where the main process is killed, nobody closes the loader.
    signal_when_parent_dies(multiprocessing.parent_process().pid, signal.SIGKILL)


def _as_it_is(result: Any) -> Any:
    return result


def _into_shared_memory(result: Any) -> Any:
    """A worker's result, with its tensors where the main process finds them.

    Sending would do this too, but from a thread of its own, where running out of space is an error that nobody gets:
    the main process would wait for ever.
    """
    try:
        for value in result if isinstance(result, tuple) else vars(result).values():
            if torch.is_tensor(value):
                value.share_memory_()
    except RuntimeError:
        for leftover in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):  # torch made it, then could not fill it
            leftover.unlink(missing_ok=True)
        return UserError(
            "shared memory (/dev/shm) is full: give it more, with --shm-size or --ipc=host in Docker, or set "
            "runtime.workers or runtime.prefetch_batches lower"
        )
    return result
