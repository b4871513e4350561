"""Reading packs: one split of a dataset as one file of images and one index, as `packing.py` writes them.

    train.data    48 bytes: magic, format version, the plan's SHA-256; then the images, one after another
    train.index   48 bytes: magic, format version, length of the header, SHA-256 of all of this and the header;
                  a JSON header, which holds the SHA-256 of the tables; the tables (`Tables`), little-endian

An image is stored as a JPEG file, or, in a raw pack, as its pixels. What an index says is checked when it is opened,
before memory is taken for it; nothing of it is ever run, and the names in it are for messages only, never opened.

Must not know: decoding, order, epochs, torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import stat
import struct
import weakref
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit24h.errors import UserError, one_line

VERSION = 1
"""Of the format: raise it when files of before can no longer be read."""

INDEX_MAGIC = b"vit24h-i"
DATA_MAGIC = b"vit24h-d"
DATA_HEAD = struct.Struct("<8sII32s")  # magic, version, 0, SHA-256 of the plan
_INDEX_HEAD = struct.Struct("<8sII32s")  # magic, version, bytes of the header, SHA-256
_MAX_HEADER_BYTES = 64 * 2**20
_MAX_SIDE = 2**24  # pixels; keeps their product far from overflowing
_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # or a named pipe would wait for someone to write to it
_AGAIN = "pack the images again with `vit24h pack`"


class DamagedEntryError(OSError):
    """An image of a pack is not what was packed."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EBADMSG, reason)  # the reason is its `strerror`


@dataclass(frozen=True)
class PackParameters:
    """How pictures are stored."""

    short_side: int  # pixels; larger pictures were made so small, smaller ones kept their size
    quality: int | None  # of the JPEG files; None: raw pixels

    @property
    def raw(self) -> bool:
        return self.quality is None

    def to_dict(self) -> dict[str, int | bool]:
        return {"short_side": self.short_side} | ({"raw": True} if self.raw else {"quality": self.quality})

    def describe(self) -> str:
        return f"short side {self.short_side} px, " + ("raw pixels" if self.raw else f"JPEG quality {self.quality}")


@dataclass(frozen=True)
class Tables:
    """What an index knows of every image."""

    offsets: np.ndarray  # (N + 1,) int64: image i is bytes offsets[i] to offsets[i + 1] of the data file
    name_ends: np.ndarray  # (N + 1,) int64: name i is names[name_ends[i] : name_ends[i + 1]]
    labels: np.ndarray  # (N,) int32
    checksums: np.ndarray  # (N,) uint32: CRC-32 of the image's bytes
    sizes: np.ndarray  # (N, 2) uint32: height, width in pixels; (0, 2) where the images are JPEG files
    names: np.ndarray  # bytes, uint8: the files' names below their class folder, one after another

    def to_bytes(self) -> bytes:
        return b"".join(np.ascontiguousarray(table).tobytes() for table in vars(self).values())


def index_to_bytes(header: Mapping[str, Any], tables: Tables) -> bytes:
    """An index file. `header` is what `PackIndex` reads, less what follows from the tables."""
    stored = tables.to_bytes()
    whole = {
        **header,
        "images": len(tables.labels),
        "counts": np.bincount(tables.labels, minlength=len(header["classes"])).tolist(),
        "data_bytes": int(tables.offsets[-1]),
        "names_bytes": len(tables.names),
        "tables_sha256": hashlib.sha256(stored).hexdigest(),
    }
    text = canonical(whole)
    text += b" " * (-(_INDEX_HEAD.size + len(text)) % 8)  # the tables begin at a multiple of 8
    return _index_head(VERSION, text) + text + stored


def canonical(content: Mapping[str, Any]) -> bytes:
    """JSON, always the same for the same content; names of any bytes are escaped."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def data_head(plan: bytes) -> bytes:
    """The first bytes of a data file whose packing was begun with `plan`."""
    return DATA_HEAD.pack(DATA_MAGIC, VERSION, 0, hashlib.sha256(plan).digest())


class PackIndex:
    """One packed split. Open one with `PackIndex.open`.

    The index lies in memory, about 50 bytes an image, which forked processes share. JPEG files are read (`pread`); raw
    pixels are a view of the mapped file, of which a crop touches only its own rows. Reading, where mapping would save
    a copy of 30 kB, costs 2 to 4 % of a crop at 32 px (5 to 13 µs), and is worth it: a file that is cut off or a disk
    that fails under a map ends the process with a bus error; under a read it is one unreadable image. For raw pixels
    the copy would cost as much as the crop, so there the file's length is looked at instead before each image.

    Every process verifies the checksum of each image the first time it reads it. Always would cost 8 % of a crop from
    a JPEG pack and twice the crop from a raw one (30 and 170 µs at about 1.1 GB/s); a run of 100 epochs still looks at
    each image as many times as it has workers.

    `packed_as` and `source` say how and of what it was made, `stored_bytes` how large its two files are.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], tables: Tables, index_bytes: int):
        self.classes: tuple[str, ...] = tuple(header["classes"])
        self.labels = tables.labels
        self.fingerprint = _fingerprint(header)
        self.packed_as = _parameters(header["parameters"])
        self.source: Mapping[str, str] = header["source"]  # name: the folder's last; fingerprint: as FolderIndex's
        self.stored_bytes = header["data_bytes"] + index_bytes
        self.plan: Mapping[str, Any] = {key: header[key] for key in PLAN_KEYS}
        self._tables = tables
        self._path = folder / f"{header['split']}.data"
        self._head = data_head(canonical(self.plan))
        self._bytes: int = header["data_bytes"]
        self._verified = np.zeros(len(tables.labels), bool)
        self._data = self._open_data()

    @classmethod
    def open(cls, folder: Path, split: str) -> PackIndex:
        """The pack `split`.index and `split`.data in `folder`.

        Raises:
            UserError: a file is missing, of another version, damaged, or cut off.
        """
        path = folder / f"{split}.index"
        header, tables, size = read_index(path)
        if header["split"] != split:
            raise UserError(f"{path}: is the index of the split {one_line(header['split'])}: {_AGAIN}")
        try:
            return cls(folder, header, tables, size)
        except DamagedEntryError as error:
            raise UserError(f"{folder / split}.data: {error.strerror}: {_AGAIN}") from error
        except OSError as error:
            raise UserError(
                f"{folder / split}.data: cannot be read: {error.strerror}: put it beside {path.name}, or {_AGAIN}"
            ) from error

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | np.ndarray:
        """The image's JPEG file, or its pixels: (H, W, 3) uint8, read-only, a view of the file.

        Raises:
            DamagedEntryError: the bytes are not those that were packed.
            OSError: they cannot be read.
        """
        begin, end = self._tables.offsets[index : index + 2].tolist()
        try:
            stored = self._data.bytes_at(begin, end)
        except OSError:  # its disk was away, and may be back, but what was open before stays dead
            self._data = self._open_data()
            stored = self._data.bytes_at(begin, end)
        if not self._verified[index]:
            if zlib.crc32(stored) != self._tables.checksums[index]:
                raise DamagedEntryError(f"damaged in {self._path.name}, bytes {begin} to {end}: the checksum differs")
            self._verified[index] = True
        if not self.packed_as.raw:
            return stored
        height, width = self._tables.sizes[index].tolist()
        return np.frombuffer(stored, np.uint8).reshape(height, width, 3)

    def path(self, index: int) -> Path:
        """For a message: the data file and the name of the file that was packed. Nothing of this name exists."""
        begin, end = self._tables.name_ends[index : index + 2].tolist()
        name = os.fsdecode(self._tables.names[begin:end].tobytes())
        return Path(f"{self._path}:{self.classes[self.labels[index]]}/{name}")

    def is_there(self) -> bool:
        try:
            self._open_data()
        except OSError:
            return False
        return True

    def _open_data(self) -> _DataFile:
        return _DataFile(self._path, self._bytes, self._head, mapped=self.packed_as.raw)


PLAN_KEYS = ("format", "split", "images", "parameters", "libraries", "source")
"""What is settled before the first image is packed; all that its bytes depend on."""


def read_index(path: Path) -> tuple[dict[str, Any], Tables, int]:
    """Header and tables of an index file, and its size in bytes.

    Raises:
        UserError: it is missing, of another version, damaged, or says what cannot be.
    """
    try:
        with os.fdopen(os.open(path, _READING), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise _refused(path, "is not a file")
            header = _read_header(path, file.read(_INDEX_HEAD.size), file.read, found.st_size)
            begin = file.tell()
            layout = _layout(header)
            expected = begin + sum(dtype.itemsize * count for _, dtype, count in layout)
            if found.st_size != expected:
                raise _refused(path, f"has {found.st_size:,} bytes where its header says {expected:,}")
            content = file.read(expected - begin)
    except IsADirectoryError as error:
        raise _refused(path, "is not a file") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: is missing: put it beside {path.stem}.data, or {_AGAIN}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) != expected - begin or hashlib.sha256(content).hexdigest() != header["tables_sha256"]:
        raise _refused(path, f"is damaged from byte {begin} on: the checksum differs")
    tables, at = {}, 0
    for name, dtype, count in layout:
        tables[name] = np.frombuffer(content, dtype, count, at)
        at += dtype.itemsize * count
    tables["sizes"] = tables["sizes"].reshape(-1, 2)
    whole = Tables(**tables)
    if (problem := _problem(header, whole)) is not None:
        raise _refused(path, problem)
    return header, whole, expected


class _DataFile:
    """An open data file. Several processes read it at the same time: it has no position of its own.

    Raises:
        DamagedEntryError: from the constructor: it is not the file of this index.
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path, size: int, head: bytes, *, mapped: bool):
        self._descriptor = os.open(path, _READING)
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise DamagedEntryError("is not a file")
        if found.st_size != size:
            raise DamagedEntryError(f"has {found.st_size:,} bytes where its index says {size:,}")
        if (there := os.pread(self._descriptor, len(head), 0)) != head:
            same_kind = there[: len(DATA_MAGIC)] == DATA_MAGIC
            raise DamagedEntryError("belongs to another index" if same_kind else "does not begin as a pack does")
        self._map = mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ) if mapped else None

    def bytes_at(self, begin: int, end: int) -> bytes | memoryview:
        if self._map is None:
            stored = os.pread(self._descriptor, end - begin, begin)
            if len(stored) == end - begin:
                return stored
        elif os.fstat(self._descriptor).st_size >= end:
            return memoryview(self._map)[begin:end]
        raise DamagedEntryError(f"cut off before byte {end}")


# -- what an index may say --------------------------------------------------------------------------------------------


def _index_head(version: int, header: bytes) -> bytes:
    begin = _INDEX_HEAD.pack(INDEX_MAGIC, version, len(header), b"")[:16]
    return begin + hashlib.sha256(begin + header).digest()


def _read_header(path: Path, head: bytes, read: Any, size: int) -> dict[str, Any]:
    if len(head) < _INDEX_HEAD.size or head[: len(INDEX_MAGIC)] != INDEX_MAGIC:
        raise _refused(path, "is not the index of a pack" if head else "is empty")
    _, version, length, _ = _INDEX_HEAD.unpack(head)
    if version > VERSION:
        raise UserError(
            f"{path}: is of format {version}, and this program reads up to {VERSION}: update the program, or {_AGAIN}"
        )
    if length > min(_MAX_HEADER_BYTES, size):
        raise _refused(path, f"is damaged: a header of {length:,} bytes in a file of {size:,}")
    text = read(length)
    if version != VERSION or head != _index_head(version, text):
        raise _refused(path, f"is damaged in its first {_INDEX_HEAD.size + length} bytes: the checksum differs")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refused(path, "has a header that is no JSON") from error
    try:
        _check_header(header)
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, f"has a header that cannot be: {one_line(str(error))}") from error
    return header


def _check_header(header: Any) -> None:
    """KeyError, TypeError or ValueError where it is not as the writer makes it."""
    if not isinstance(header, dict):
        raise TypeError("no mapping")
    for key in ("images", "data_bytes", "names_bytes"):
        _whole(header[key], key, 1, 2**31 - 1 if key == "images" else 2**62)
    if header["format"] != VERSION or type(header["format"]) is not int:
        raise ValueError("format")
    for where, keys in ((header, ("split", "tables_sha256")), (header["source"], ("name", "fingerprint"))):
        for key in keys:
            _text(where[key], key)
    _sha256(header["tables_sha256"], "tables_sha256")
    _sha256(header["source"]["fingerprint"], "source fingerprint")
    for key, value in dict(header["libraries"]).items():
        _text(value, key)
    _parameters(header["parameters"])
    classes, counts = header["classes"], header["counts"]
    if not isinstance(classes, list) or not classes or not isinstance(counts, list) or len(classes) != len(counts):
        raise ValueError("classes and counts")
    for name in classes:
        _text(name, "a class")
        if not name or "/" in name or "\0" in name or name in {".", ".."}:
            raise ValueError(f"the class {name!r}")
    if len(set(classes)) != len(classes):
        raise ValueError("a class twice")
    for count in counts:
        _whole(count, "counts", 1, header["images"])


def _layout(header: Mapping[str, Any]) -> list[tuple[str, np.dtype, int]]:
    """(table, type, number of values), in the order of the file."""
    images, raw = header["images"], _parameters(header["parameters"]).raw
    eight, four = np.dtype("<i8"), np.dtype("<u4")
    return [
        ("offsets", eight, images + 1),
        ("name_ends", eight, images + 1),
        ("labels", np.dtype("<i4"), images),
        ("checksums", four, images),
        ("sizes", four, 2 * images if raw else 0),
        ("names", np.dtype("u1"), header["names_bytes"]),
    ]


def _problem(header: Mapping[str, Any], tables: Tables) -> str | None:
    """What is wrong with tables whose checksum fits; None for nothing."""
    offsets, ends, labels = tables.offsets, tables.name_ends, tables.labels
    if offsets[0] != DATA_HEAD.size or offsets[-1] != header["data_bytes"] or np.any(offsets[1:] <= offsets[:-1]):
        return "has offsets that are not in order within the data file"
    if labels.min() < 0 or labels.max() >= len(header["classes"]):
        return f"has labels beyond its {len(header['classes'])} classes"
    if np.bincount(labels, minlength=len(header["classes"])).tolist() != header["counts"]:
        return "has other numbers of images in its classes than it says"
    if _parameters(header["parameters"]).raw:
        sides = tables.sizes.astype(np.int64)
        if sides.min() < 1 or sides.max() > _MAX_SIDE or np.any(sides[:, 0] * sides[:, 1] * 3 != np.diff(offsets)):
            return "has sizes of pictures that do not fit their bytes"
    if ends[0] != 0 or ends[-1] != len(tables.names) or np.any(ends[1:] <= ends[:-1]):
        return "has names that are not in order"
    names = tables.names.tobytes()
    steps_up = (int(np.searchsorted(ends, found.start(), "right")) - 1 for found in re.finditer(rb"\.\.", names))
    if (
        b"\0" in names
        or np.any(tables.names[ends[:-1]] == ord("/"))
        or any(b".." in names[ends[i] : ends[i + 1]].split(b"/") for i in steps_up)
    ):
        return "has a name that leads out of its folder"
    return None


def _parameters(values: Any) -> PackParameters:
    """KeyError, TypeError or ValueError where they are none."""
    expected = {"short_side", "raw"} if "raw" in values else {"short_side", "quality"}
    if not isinstance(values, dict) or set(values) != expected or values.get("raw", True) is not True:
        raise ValueError("parameters")
    _whole(values["short_side"], "short_side", 1, _MAX_SIDE)
    if "quality" in values:
        _whole(values["quality"], "quality", 1, 100)
    return PackParameters(values["short_side"], values.get("quality"))


def _whole(value: Any, name: str, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(name)


def _text(value: Any, name: str) -> None:
    if not isinstance(value, str) or len(value) > 1000:
        raise TypeError(name)


def _sha256(value: str, name: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(name)


def _fingerprint(header: Mapping[str, Any]) -> str:
    """Of what is in the pack and how it was made; not of its folder's name or the libraries' versions."""
    keys = ("split", "images", "classes", "parameters", "tables_sha256")
    content = {key: header[key] for key in keys} | {"source": header["source"]["fingerprint"]}
    return hashlib.sha256(canonical(content)).hexdigest()


def _refused(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}: {_AGAIN}")
