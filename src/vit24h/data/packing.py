"""Writing packs: a folder of images becomes, once, one data file and one index a split (`pack.py` has their layout).

Larger pictures are made smaller, bicubic as Pillow does it and rounded as the evaluation does it, so that a raw pack
of the evaluation's short side gives the evaluation exactly the pixels that it would have made itself. JPEG files keep
the chroma subsampling of their source, and grey-scale stays grey-scale; JPEG files that are small enough stay as they
are, byte for byte.

Images are packed in the order of the folder, one class after another: training reads them in an order of its own, from
a disk without moving parts, so no other order would be better, and this one needs no memory.

The files depend on the images, their folder's name, the parameters and the libraries alone: not on the number of
processes, the day, or how often the packing was stopped. While it lasts, images go to `train.data.partial`, and for
every one of them a record of fixed size to `train.journal`, which begins with the plan: what is packed, and how.
Whatever stopped it, the next start keeps all images whose checksum still fits and goes on behind them.

Must not know: training.
"""

from __future__ import annotations

import fcntl
import io
import json
import multiprocessing
import os
import shutil
import signal
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, features
from PIL import __version__ as pillow_version

from vit24h.data import pack
from vit24h.data.decode import CorruptImageError, decode
from vit24h.data.index import FolderIndex, open_dataset
from vit24h.data.pack import PackIndex, PackParameters, Tables
from vit24h.errors import UserError, one_line
from vit24h.files import replace_file, sync_folder
from vit24h.processes import signal_when_parent_dies
from vit24h.progress import CountDisplay, duration

SPLITS = ("train", "val")
LARGEST_SHORT_SIDE = 4096

_SAMPLED_IMAGES = 200
_SAMPLED_TOGETHER = 5
_CHUNK_IMAGES = 16  # a process's task, and at most a few MB of its results
_ROOM_TO_SPARE = 1.05  # the estimate is of a sample
_MAX_CORRUPT = 1000  # then it is not worth while to look for more
_CORRUPT_SHOWN = 20
_MAX_PLAN_BYTES = 2**16
_LOCK_WAIT_S = 2.0  # for processes that see that theirs was killed
_RECORD = np.dtype([("length", "<u8"), ("checksum", "<u4"), ("height", "<u4"), ("width", "<u4")])
_RECORDS_AT_ONCE = 4096
_GB = 1e9


class PackingStopped(Exception):  # noqa: N818 - not an error: it goes on at the next start
    """The packing was asked to stop. What is packed stays; the message says how much that is."""


@dataclass(frozen=True)
class Estimate:
    """What a packing will take, from a sample of its images."""

    sampled: int
    data_bytes: int
    seconds: float


class Packing:
    """One packing of a folder, begun or to be begun.

    Args:
        source: a folder with `train/<class>/<image>` and `val/<class>/<image>`.
        destination: the folder for the four files; made if needed.
        parameters: how pictures are stored.
        workers: processes.

    Raises:
        UserError: what is given does not go together, or `destination` holds something else.
    """

    def __init__(self, source: Path, destination: Path, parameters: PackParameters, workers: int) -> None:
        if not 1 <= parameters.short_side <= LARGEST_SHORT_SIDE:
            raise UserError(f"--short-side {parameters.short_side}: expected 1 to {LARGEST_SHORT_SIDE} pixels")
        if parameters.quality is not None and not 1 <= parameters.quality <= 100:
            raise UserError(f"--quality {parameters.quality}: expected 1 to 100; 90 is usual")
        if not 1 <= workers <= 1024:
            raise UserError(f"--workers {workers}: expected 1 to 1024 processes")
        self._source, self._folder = source.expanduser(), destination.expanduser()
        self._parameters, self._workers = parameters, workers
        _check_places(self._source, self._folder)
        dataset = open_dataset(self._source)
        if not (isinstance(dataset.train, FolderIndex) and isinstance(dataset.val, FolderIndex)):
            raise UserError(f"{self._source}: is packed already: give the folder of images that it was made of")
        self._images: dict[str, FolderIndex] = {"train": dataset.train, "val": dataset.val}
        self._name = self._source.resolve().name
        self.total = len(dataset.train) + len(dataset.val)

    def run(self, stop: Callable[[], bool] = lambda: False, say: Callable[[str], None] = print) -> None:
        """Pack what is not packed yet.

        Args:
            stop: asked now and then; True ends the packing.
            say: gets lines that tell what is found and done.

        Raises:
            PackingStopped: as asked for.
            UserError: the disk is too small or full, images are corrupt or cannot be read, another packing is at work
                there, or another one was begun there.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _held(self._folder):
                self._run(stop, say)
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be written: {error.strerror}: what is packed stays; make room or choose "
                "another folder, and the same command goes on"
            ) from error

    def _run(self, stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        writers = [
            _SplitWriter(self._folder, split, images, self._parameters, self._name)
            for split, images in self._images.items()
        ]
        if all(writer.finished for writer in writers):
            say(f"{self._folder}: holds these images already, packed ({self._parameters.describe()}): nothing to do")
            return
        images = f"{len(self._images['train']):,} training and {len(self._images['val']):,} validation images"
        say(f"{images} of {len(self._images['train'].classes):,} classes")
        with _Pool(self._workers, self._images, self._parameters) as pool:
            estimate = self._estimate(pool, stop)
            self._check_room(estimate, writers, say)
            with CountDisplay("pack", self.total, "images") as display:
                done = 0
                for writer in writers:
                    with writer:
                        done = self._pack_split(writer, pool, display, done, stop)
        packed = [PackIndex.open(self._folder, split) for split in SPLITS]
        size = sum(index.stored_bytes for index in packed)
        say(f"packed: {self.total:,} images, {_size(size)} in {self._folder}")

    def _estimate(self, pool: _Pool, stop: Callable[[], bool]) -> Estimate:
        """From images spread evenly over both splits; images that are corrupt are not counted."""
        train = len(self._images["train"])
        spread = sorted(set(np.linspace(0, self.total - 1, _SAMPLED_IMAGES, dtype=int).tolist()))
        indices = {"train": [i for i in spread if i < train], "val": [i - train for i in spread if i >= train]}
        tasks = [
            (split, indices[split][begin : begin + _SAMPLED_TOGETHER])
            for split in SPLITS
            for begin in range(0, len(indices[split]), _SAMPLED_TOGETHER)
        ]
        sampled, size, seconds = 0, 0, 0.0
        for prepared in pool.in_order(iter(tasks)):
            if stop():
                raise PackingStopped("stopped before an image was packed")
            sampled += len(prepared.records)
            size += len(prepared.stored)
            seconds += prepared.seconds
        share = self.total / max(sampled, 1)
        return Estimate(sampled, round(size * share), seconds * share / self._workers)

    def _check_room(self, estimate: Estimate, writers: Sequence[_SplitWriter], say: Callable[[str], None]) -> None:
        there = sum(writer.bytes_there() for writer in writers)
        index_bytes = sum(images.names_bytes() + 60 * len(images) for images in self._images.values())
        wanted = estimate.data_bytes + index_bytes
        missing = max(wanted * _ROOM_TO_SPARE - there, 0)
        free = shutil.disk_usage(self._folder).free
        time_left = duration(estimate.seconds * max(1 - there / max(wanted, 1), 0))
        processes = f"{self._workers} process{'' if self._workers == 1 else 'es'}"
        say(
            f"about {_size(wanted)} ({self._parameters.describe()}), in about {time_left} with {processes}, from a "
            f"sample of {estimate.sampled}; {_size(free)} free" + (f", {_size(there)} packed before" if there else "")
        )
        if missing > free:
            raise UserError(
                f"{self._folder}: {_size(free)} free, about {_size(missing)} wanted: make room, choose a folder on "
                "another disk, or set --short-side or --quality lower"
            )

    def _pack_split(
        self, writer: _SplitWriter, pool: _Pool, display: CountDisplay, before: int, stop: Callable[[], bool]
    ) -> int:
        """Images done when this split is."""
        images, split = writer.images, writer.split

        def stop_if_asked() -> None:
            if stop():
                raise PackingStopped(f"stopped with {before + writer.done:,} of {self.total:,} images packed")

        if not writer.finished:
            for done in writer.begin():
                display.note(f"looking at what is there: {before + done:,} images of {split}")
                stop_if_asked()
            display.start_at(before + writer.done)
            tasks = (
                (split, range(begin, min(begin + _CHUNK_IMAGES, len(images))))
                for begin in range(writer.done, len(images), _CHUNK_IMAGES)
            )
            corrupt: list[str] = []
            at = writer.done
            for prepared in pool.in_order(tasks):
                stop_if_asked()
                if prepared.unreadable is not None:
                    index, reason = prepared.unreadable
                    raise UserError(
                        f"{images.path(index)}: cannot be read: {reason}: what is packed stays; mend it, and the same "
                        "command goes on"
                    )
                corrupt += [f"{images.path(index)} ({one_line(reason)})" for index, reason in prepared.corrupt]
                if not corrupt:
                    writer.append(prepared)
                elif len(corrupt) >= _MAX_CORRUPT:
                    break
                at += len(prepared.records) + len(prepared.corrupt)
                display.update(before + at)
            if corrupt:
                raise UserError(_of_corrupt(corrupt, split, self._folder))
            writer.finish()
        display.update(before + len(images))
        return before + len(images)


def stored_picture(encoded: bytes, parameters: PackParameters) -> tuple[bytes, int, int]:
    """What a pack keeps of an image file: a JPEG file or raw pixels, and its height and width.

    Raises:
        CorruptImageError: it cannot be decoded to its end.
    """
    picture = decode(encoded)
    kind = _jpeg_kind(encoded)
    short_side = min(picture.size)
    larger = short_side > parameters.short_side
    if larger:
        # torchvision's Resize rounds the long side down.
        size = [parameters.short_side * side // short_side for side in picture.size]
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    if parameters.raw:
        return np.asarray(picture).tobytes(), picture.height, picture.width
    if kind is not None and not larger:
        return encoded, picture.height, picture.width
    grey, subsampling = kind if kind is not None else (False, 0)
    if grey:
        picture = picture.convert("L")  # all three channels are equal: it gives them back exactly
    picture.info = {}  # comments and the like
    try:
        return _jpeg(picture, parameters.quality, subsampling), picture.height, picture.width
    except (OSError, ValueError) as error:  # more than 65,500 pixels on a side
        raise CorruptImageError(f"cannot be stored as JPEG: {error}") from error


def _jpeg(picture: Image.Image, quality: int, subsampling: int) -> bytes:
    """Huffman tables of its own take 3 % fewer bytes and are 2 to 5 % faster to decode, in every epoch."""
    written = io.BytesIO()
    block = ImageFile.MAXBLOCK
    # With them Pillow has to hold the whole file, and takes a byte a pixel for enough; it is not, for noise.
    ImageFile.MAXBLOCK = max(block, 10 * picture.width * picture.height)
    try:
        picture.save(written, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    finally:
        ImageFile.MAXBLOCK = block
    return written.getvalue()


def _jpeg_kind(encoded: bytes) -> tuple[bool, int] | None:
    """(grey-scale?, chroma subsampling as Pillow numbers it) of a JPEG file that decodes to grey-scale or RGB."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF data and the like
        image = Image.open(io.BytesIO(encoded))
    with image:
        if image.format != "JPEG" or image.mode not in {"RGB", "L"}:
            return None
        return image.mode == "L", max(JpegImagePlugin.get_sampling(image), 0)  # unknown: 4:4:4


def libraries() -> dict[str, str]:
    """What decodes and encodes here: the bytes of a pack may depend on it."""
    turbo = features.version_feature("libjpeg_turbo")
    jpeg = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version_codec('jpg')}"
    return {"pillow": pillow_version, "jpeg": jpeg}


# -- the files of a split ---------------------------------------------------------------------------------------------


class _SplitWriter:
    """The files of one split, in whatever state they are: nothing there, begun, written but not yet renamed, finished.

    At the end the index is written beside its place, the data file is renamed into place, then the index, then the
    journal is removed: a stop between any two of these is seen, and the next start does the rest.

    Raises:
        UserError: from the constructor: there is something else.
    """

    def __init__(
        self, folder: Path, split: str, images: FolderIndex, parameters: PackParameters, source_name: str
    ) -> None:
        self.split, self.images = split, images
        self._folder = folder
        self._data, self._index = folder / f"{split}.data", folder / f"{split}.index"
        self._partial, self._journal = folder / f"{split}.data.partial", folder / f"{split}.journal"
        self._plan = {
            "format": pack.VERSION,
            "split": split,
            "images": len(images),
            "parameters": parameters.to_dict(),
            "libraries": libraries(),
            "source": {"name": source_name, "fingerprint": images.fingerprint},
        }
        self._raw = parameters.raw
        self._plan_line = pack.canonical(self._plan) + b"\n"
        self._begin = len(self._plan_line)
        self.done = 0  # images
        self._files = ExitStack()
        self.finished = self._look()

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def bytes_there(self) -> int:
        return sum(path.stat().st_size for path in (self._data, self._partial) if path.exists())

    def begin(self) -> Iterator[int]:
        """Open the files; drop what does not fit its checksum. Yields images looked at, now and then."""
        if not self._journal.exists():
            replace_file(self._journal, self._plan_line)
        if self._data.exists():  # renamed, then stopped
            self._data.replace(self._partial)
        mode = "r+b" if self._partial.exists() else "w+b"
        self._data_file = self._files.enter_context(self._partial.open(mode, buffering=0))
        self._journal_file = self._files.enter_context(self._journal.open("r+b", buffering=0))
        head = pack.data_head(self._plan_line[:-1])
        if self._data_file.read(len(head)) != head:
            self._data_file.truncate(0)
            self._data_file.seek(0)
            _write_all(self._data_file, head)
        end = len(head)
        self._journal_file.seek(self._begin)
        for records in _blocks(self._journal_file):
            whole = self._whole(records)
            self.done += whole
            end += int(records["length"][:whole].sum())
            yield self.done
            if whole < len(records):
                break
        self._data_file.truncate(end)
        self._journal_file.truncate(self._begin + self.done * _RECORD.itemsize)
        self._data_file.seek(end)
        self._journal_file.seek(0, os.SEEK_END)

    def append(self, prepared: Prepared) -> None:
        _write_all(self._data_file, prepared.stored)
        _write_all(self._journal_file, prepared.records.tobytes())
        self.done += len(prepared.records)

    def finish(self) -> None:
        """Sync, write the index, rename both into place, remove the journal."""
        os.fsync(self._data_file.fileno())
        self._journal_file.seek(self._begin)
        records = np.frombuffer(self._journal_file.read(), _RECORD)
        lengths = np.concatenate([[pack.DATA_HEAD.size], records["length"].astype(np.int64)])
        names, name_ends = self.images.names()
        sides = np.stack([records["height"], records["width"]], axis=1) if self._raw else np.empty((0, 2), np.uint32)
        tables = Tables(
            offsets=np.cumsum(lengths),
            name_ends=name_ends,
            labels=self.images.labels,
            checksums=records["checksum"],
            sizes=sides,
            names=np.frombuffer(names, np.uint8),
        )
        beside = self._index.with_name(self._index.name + ".partial")
        with beside.open("wb", buffering=0) as file:
            _write_all(file, pack.index_to_bytes({**self._plan, "classes": list(self.images.classes)}, tables))
            os.fsync(file.fileno())
        self._files.close()
        self._partial.replace(self._data)
        beside.replace(self._index)
        sync_folder(self._folder)
        self._journal.unlink()
        self.finished = True

    def _look(self) -> bool:
        """Whether this split is packed, as it is to be."""
        if self._index.exists():
            try:
                there = PackIndex.open(self._folder, self.split).plan
            except UserError as error:
                raise UserError(f"{error}, after removing {self._index.name} and {self._data.name}") from error
            if (difference := _difference(there, self._plan)) is not None:
                raise UserError(
                    f"{self._index}: {difference}: choose another folder, or remove what is there to pack anew"
                )
            self._journal.unlink(missing_ok=True)  # the last thing that would have been done
            return True
        if self._journal.exists():
            begun = _read_plan(self._journal)
            if (difference := _difference(begun, self._plan)) is not None:
                raise UserError(
                    f"{self._journal}: this packing was begun otherwise: {difference}: choose another folder, or "
                    f"remove {self._journal.name} and {self._partial.name} to begin anew"
                )
        elif self._data.exists():
            raise UserError(f"{self._data}: is there without its index: put {self._index.name} beside it, or remove it")
        return False

    def _whole(self, records: np.ndarray) -> int:
        """How many of these records, from the first on, are of images that are in the data file, undamaged."""
        for number, (length, checksum, height, width) in enumerate(records.tolist()):
            if length == 0 or (self._raw and length != 3 * height * width):
                return number
            if length > os.fstat(self._data_file.fileno()).st_size:
                return number
            stored = self._data_file.read(length)
            if len(stored) != length or zlib.crc32(stored) != checksum:
                return number
        return len(records)


def _blocks(journal: io.FileIO) -> Iterator[np.ndarray]:
    while content := journal.read(_RECORDS_AT_ONCE * _RECORD.itemsize):
        yield np.frombuffer(content, _RECORD, len(content) // _RECORD.itemsize)


def _read_plan(journal: Path) -> Mapping[str, Any]:
    with journal.open("rb") as file:
        line = file.readline(_MAX_PLAN_BYTES)
    try:
        plan = json.loads(line)
        if isinstance(plan, dict) and line.endswith(b"\n"):
            return plan
    except (ValueError, RecursionError):
        pass
    raise UserError(f"{journal}: is damaged: remove it and {journal.stem}.data.partial to begin anew")


def _difference(there: Mapping[str, Any], wanted: Mapping[str, Any], of: str = "") -> str | None:
    """The first thing in which two plans differ, in words; None for nothing."""
    for key in pack.PLAN_KEYS if not of else sorted({*there, *wanted}):
        old, new = there.get(key), wanted.get(key)
        if old == new and type(old) is type(new):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            return _difference(old, new, f"{key} ")
        return f"{of}{one_line(key)} is {one_line(json.dumps(old))}, and here {one_line(json.dumps(new))}"
    return None


def _write_all(file: io.FileIO, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


# -- the processes that decode and encode -----------------------------------------------------------------------------


@dataclass
class Prepared:
    """Images of one task, up to the first that cannot be read."""

    stored: bytes = b""
    records: np.ndarray = field(default_factory=lambda: np.empty(0, _RECORD))
    corrupt: list[tuple[int, str]] = field(default_factory=list)  # (index, reason)
    unreadable: tuple[int, str] | None = None
    seconds: float = 0.0


class _Pool:
    """Processes that do one task after another; results come in the order of the tasks, a bounded number ahead."""

    def __init__(self, workers: int, images: Mapping[str, FolderIndex], parameters: PackParameters) -> None:
        self._ahead = 2 * workers + 2
        self._executor = ProcessPoolExecutor(
            workers,
            # They share the index of the folder with this process instead of holding copies.
            mp_context=multiprocessing.get_context("fork"),
            initializer=_start_working,
            initargs=(os.getpid(), images, parameters),
        )

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def in_order(self, tasks: Iterator[tuple[str, Sequence[int]]]) -> Iterator[Prepared]:
        waiting: deque[Future[Prepared]] = deque()
        try:
            while True:
                while len(waiting) < self._ahead and (task := next(tasks, None)) is not None:
                    waiting.append(self._executor.submit(_prepare, *task))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError(
                "a packing process was killed, most often because memory ran out: what is packed stays; set --workers "
                "lower, and the same command goes on"
            ) from error


_images: Mapping[str, FolderIndex]  # of a process that works
_parameters: PackParameters


def _start_working(parent: int, images: Mapping[str, FolderIndex], parameters: PackParameters) -> None:
    global _images, _parameters
    _images, _parameters = images, parameters
    # Ctrl-C and SIGTERM reach the whole process group; the main process ends this one, and its death does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal_when_parent_dies(parent, signal.SIGKILL)


def _prepare(split: str, indices: Sequence[int]) -> Prepared:
    begin = time.perf_counter()
    result, stored, records = Prepared(), [], []
    for index in indices:
        try:
            encoded = _images[split].read(index)
        except OSError as error:
            result.unreadable = (index, error.strerror or str(error))
            break
        try:
            content, height, width = stored_picture(encoded, _parameters)
        except CorruptImageError as error:
            result.corrupt.append((index, str(error)))
            continue
        stored.append(content)
        records.append((len(content), zlib.crc32(content), height, width))
    result.stored, result.records = b"".join(stored), np.array(records, _RECORD)
    result.seconds = time.perf_counter() - begin
    return result


# -- places and words -------------------------------------------------------------------------------------------------


def _check_places(source: Path, destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination}: is a file: expected a folder for the packs, which is made if needed")
    inside = destination.resolve()
    if source.resolve() in (inside, *inside.parents):
        raise UserError(f"{destination}: lies in the folder that is to be packed: choose one outside of {source}")
    for split in SPLITS:
        if (destination / split).exists():
            raise UserError(f"{destination}: holds a folder {split}/: choose another folder for the packs")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other packings out of `folder`; UserError, which names the process, where one is at work."""
    path = folder / "packing.lock"
    end = time.monotonic() + _LOCK_WAIT_S
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = one_line(file.read(20).decode(errors="replace")) or "unknown"
            file.close()
            if time.monotonic() > end:
                raise UserError(f"{folder}: process {holder} is packing there: wait for it, or stop it first") from None
            time.sleep(0.1)
            continue
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # its holder removed it when it left
    with file:
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _of_corrupt(corrupt: Sequence[str], split: str, folder: Path) -> str:
    many = f"{len(corrupt):,}" if len(corrupt) < _MAX_CORRUPT else f"at least {len(corrupt):,}"
    listed = "; ".join(corrupt[:_CORRUPT_SHOWN])
    if len(corrupt) > _CORRUPT_SHOWN:
        listed += f" and {len(corrupt) - _CORRUPT_SHOWN:,} more (`vit24h doctor --full` names them)"
    return (
        f"{many} image{'' if len(corrupt) == 1 else 's'} of {split} cannot be packed, and none is left out in silence: "
        f"{listed}: put intact copies there, or remove them, then pack again (into another folder, or after removing "
        f"{folder / split}.journal, where sizes or names change by that)"
    )


def _size(number: float) -> str:
    return f"{number / _GB:,.1f} GB" if number >= _GB / 10 else f"{number / 1e6:,.1f} MB"
