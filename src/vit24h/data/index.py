"""Which images a dataset has: their labels, their names, what is stored of them. `open_dataset` is the one door.

An index is one block of file names and two arrays, whatever the number of images: light, and shared by the loader's
processes without a copy.

Must not know: decoding, order, epochs, torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit24h.data.pack import DamagedEntryError, PackIndex
from vit24h.errors import UserError

__all__ = ["DamagedEntryError", "Dataset", "FolderIndex", "ImageSource", "open_dataset"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_SPLITS = ("train", "val")
_PACK_FILES = tuple(f"{split}.{kind}" for split in _SPLITS for kind in ("index", "data", "data.partial", "journal"))


class ImageSource(Protocol):
    """One split of a dataset, however it is stored."""

    classes: tuple[str, ...]
    labels: np.ndarray  # (N,) int32, indices into `classes`
    fingerprint: str  # hexadecimal; equal for equal names and sizes of files

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | memoryview | np.ndarray:
        """An encoded image file; or pixels, (H, W, 3) uint8, read-only.

        Raises:
            DamagedEntryError: an OSError: what is stored is not what was packed.
            OSError: it cannot be read.
        """

    def path(self, index: int) -> Path:
        """Where the image is, as a message names it."""

    def is_there(self) -> bool:
        """False where the whole split cannot be read at this moment: its folder is gone, its disk is not mounted."""


@dataclass(frozen=True)
class Dataset:
    """The two splits of a dataset, of the same classes."""

    train: ImageSource
    val: ImageSource

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the labels."""
        return self.train.classes

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both splits' fingerprints, hexadecimal."""
        return _joint_fingerprint(self.train.fingerprint, self.val.fingerprint)

    @property
    def packing(self) -> dict[str, Any] | None:
        """How it was packed: parameters, bytes, and the fingerprint of the folder it was made of; None for a folder."""
        if not (isinstance(self.train, PackIndex) and isinstance(self.val, PackIndex)):
            return None
        return {
            **self.train.packed_as.to_dict(),
            "source_fingerprint": _joint_fingerprint(self.train.source["fingerprint"], self.val.source["fingerprint"]),
            "bytes": self.train.stored_bytes + self.val.stored_bytes,
        }


def open_dataset(path: str | Path) -> Dataset:
    """Find out what a dataset holds. Image files are listed, not opened.

    Args:
        path: a folder with `train/<class>/<image>` and `val/<class>/<image>`, as ImageNet has it; or one that
            `vit24h pack` wrote.

    Raises:
        UserError: naming the path and what was expected there.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"data.path {folder}: {problem}: expected a folder with train/ and val/ in it, or packs")
    packed = [name for name in _PACK_FILES if (folder / name).exists()]
    if not packed:
        return _open_folder(folder)
    if images := [split for split in _SPLITS if (folder / split).is_dir()]:
        raise UserError(
            f"data.path {folder}: has both images ({images[0]}/) and packs ({packed[0]}): keep one of them there"
        )
    return _open_packs(folder, packed)


def _open_packs(folder: Path, files: list[str]) -> Dataset:
    unfinished = [name for name in files if name.endswith((".journal", ".partial"))]
    if unfinished or not all(f"{split}.index" in files for split in _SPLITS):
        beside = [name for name in files if name not in unfinished]
        if unfinished or len(beside) == 2:  # or train is finished and val is not begun
            raise UserError(
                f"data.path {folder}: is not packed to its end ({_listed(files)}): start `vit24h pack` again, as before"
            )
    train, val = (PackIndex.open(folder, split) for split in _SPLITS)
    if (train.classes, train.packed_as, train.source["name"]) != (val.classes, val.packed_as, val.source["name"]):
        raise UserError(
            f"data.path {folder}: train.index and val.index are not of the same packing: pack the images again with "
            "`vit24h pack`"
        )
    return Dataset(train, val)


def _open_folder(folder: Path) -> Dataset:
    for split in _SPLITS:
        if not (folder / split).is_dir():
            raise UserError(
                f"data.path {folder}: no folder {split}/: expected train/<class>/<image> and val/<class>/<image>, "
                f"found {_listed(sorted(entry.name for entry in _scandir(folder)))}"
            )
    train, val = FolderIndex.scan(folder / "train"), FolderIndex.scan(folder / "val")
    if train.classes != val.classes:
        only_train = sorted(set(train.classes) - set(val.classes))
        only_val = sorted(set(val.classes) - set(train.classes))
        raise UserError(
            f"data.path {folder}: train/ has {len(train.classes)} classes, val/ has {len(val.classes)}: expected the "
            f"same class folders in both; only in train/: {_listed(only_train)}; only in val/: {_listed(only_val)}"
        )
    return Dataset(train, val)


def _joint_fingerprint(train: str, val: str) -> str:
    return hashlib.sha256(f"{train} {val}".encode()).hexdigest()


class FolderIndex:
    """A folder of class folders of image files, in the order of their names. Make one with `scan`."""

    def __init__(
        self, root: Path, classes: tuple[str, ...], labels: np.ndarray, names: bytes, ends: np.ndarray, fingerprint: str
    ):
        self.root = root
        self.classes = classes
        self.labels = labels
        self.fingerprint = fingerprint
        self._names = names  # file names below their class folder, one after another
        self._ends = ends  # (N + 1,) int64: name i is _names[_ends[i] : _ends[i + 1]]

    @classmethod
    def scan(cls, root: Path) -> FolderIndex:
        """List the images of every class folder, subfolders of it included; hidden files are left out.

        The fingerprint is SHA-256 over names and sizes of the files in order, then the numbers of both.

        Raises:
            UserError: no class folder, a class folder without an image, or a folder that cannot be read.
        """
        classes = sorted(
            (entry.name for entry in _scandir(root) if entry.is_dir() and _visible(entry)), key=os.fsencode
        )
        if not classes:
            raise UserError(f"{root}: no class folders: expected {root.name}/<class>/<image>")
        names, lengths, counts = bytearray(), [np.zeros(1, np.int64)], []
        digest = hashlib.sha256()
        for name in classes:
            files = sorted(_image_files(root / name))
            if not files:
                raise UserError(
                    f"{root / name}: no image files ({', '.join(IMAGE_SUFFIXES)}): put this class's images there, "
                    "or remove the folder"
                )
            for file, size in files:
                names += file
                digest.update(b"%b/%b %d\n" % (os.fsencode(name), file, size))
            lengths.append(np.fromiter((len(file) for file, _ in files), np.int64, len(files)))
            counts.append(len(files))
        digest.update(b"%d images, %d classes" % (sum(counts), len(classes)))
        return cls(
            root=root,
            classes=tuple(classes),
            labels=np.repeat(np.arange(len(classes), dtype=np.int32), counts),
            names=bytes(names),
            ends=np.cumsum(np.concatenate(lengths)),
            fingerprint=digest.hexdigest(),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.path(index).read_bytes()

    def is_there(self) -> bool:
        try:
            with os.scandir(self.root) as entries:
                return any(True for _ in entries)  # nothing: a place where a disk was mounted
        except OSError:
            return False

    def names(self) -> tuple[bytes, np.ndarray]:
        """File names below their class folder, one after another, and where each ends: (N + 1,) int64, 0 first."""
        return self._names, self._ends

    def names_bytes(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        name = self._names[self._ends[index] : self._ends[index + 1]]
        return self.root / self.classes[self.labels[index]] / os.fsdecode(name)


def _image_files(folder: Path, below: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """(name below the class folder, size in bytes) of every image file in `folder` and its subfolders."""
    for entry in _scandir(folder):
        if not _visible(entry):
            continue
        name = below + os.fsencode(entry.name)
        if entry.is_dir():
            yield from _image_files(Path(entry.path), name + b"/")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield name, _size(entry)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError as error:  # a link to nowhere
        raise UserError(f"{entry.path}: cannot be read: {error.strerror}: mend or remove it") from error


def _scandir(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error


def _visible(entry: os.DirEntry[str]) -> bool:
    # Systems and tools leave things such as ._name.jpg and .ipynb_checkpoints behind, which are no images.
    return not entry.name.startswith(".")


def _listed(names: list[str], shown: int = 5) -> str:
    """At most the first few of `names`, for a message."""
    if not names:
        return "nothing"
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
