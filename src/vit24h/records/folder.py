"""One run's folder: its files, and writing them so that a stop at any moment leaves them readable.

`log.jsonl` only ever grows, a whole line at a time. Everything else is written beside its place and renamed into it.
Must not know: torch, what the rows mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

import yaml

from vit24h.errors import UserError
from vit24h.records import chain


class RunFolder:
    """The files of a run folder, held by one writer at a time.

    `rows` counts the rows of its log; `link` is the last one's in the log's hash chain.

    Raises:
        UserError: the folder cannot be made or written, or another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = hold_folder(path)
        with _writing_to(path):
            self.checkpoints.mkdir(exist_ok=True)
            self._log, self.rows, self.link = _open_log(self.log)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def heartbeat(self) -> Path:
        """The clock a few seconds ago, while the run lives: what tells lost time after a kill, and `status` now."""
        return self.path / "heartbeat.json"

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row to `log.jsonl`, linked to those before it; it is on the disk when this returns. NaN stays NaN.

        Raises:
            OSError: the disk is full or gone; the log is as it was.
        """
        stamped = {"event": row["event"], "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **row}
        line, link = chain.linked(stamped, self.link)
        whole = self._log.seek(0, os.SEEK_END)
        try:
            _write_all(self._log, line.encode() + b"\n")
            os.fsync(self._log.fileno())
        except OSError:
            self._log.truncate(whole)
            raise
        self.rows, self.link = self.rows + 1, link

    def close(self) -> None:
        self._log.close()
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode(), sync=sync)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    replace_file(path, yaml.safe_dump(dict(content), sort_keys=False).encode())


def replace_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write beside, sync, rename: whoever reads `path` sees the old content or the new, never a part."""
    beside = path.with_name(f".{path.name}.writing")
    with beside.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    beside.replace(path)
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold_folder(folder: Path) -> IO[str]:
    """Make `folder` and hold it until the file is closed, or the process is gone, however it went.

    Raises:
        UserError: it cannot be made or written, or another process holds it (named).
    """
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise UserError(f"{folder}: process {holder} is at work there; wait for it, or stop it first") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
    return file


def is_held(folder: Path) -> bool:
    """Whether some process holds `folder` just now."""
    try:
        file = (folder / ".lock").open()
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write there ({error.strerror}); expected a folder that this user may write to: choose "
            "another with VIT24H_RUNS (or --run-dir)"
        ) from error


def _open_log(path: Path) -> tuple[RawIOBase, int, str]:
    """Open for appending; count the rows and find the last link. A last line that a kill cut off is no row: it goes."""
    rows, link, whole = 0, chain.FIRST, 0
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                rows, whole = rows + 1, whole + len(line)
                link = chain.link_of(line[:-1]) or link
        file.truncate(whole)
    return path.open("ab", buffering=0), rows, link


def _write_all(file: RawIOBase, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]
