"""One run's folder: its files, and writing them so that a stop at any moment leaves them readable.

`log.jsonl` only ever grows, a whole line at a time. Everything else is written beside its place and renamed into it.
Must not know: torch, what the rows mean.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

import yaml

from vit24h.errors import UserError
from vit24h.files import WRITING, replace_file
from vit24h.records import chain

_MOMENT_S = 0.5


class RunFolder:
    """The files of a run folder, held by one writer at a time.

    `rows` counts the rows of its log; `link` is the last one's in the log's hash chain; `problem` is why rows wait in
    memory to be written, None where none do. Any thread may add rows.

    Args:
        wait_s: how long to wait for another process that is at work there and may be about to leave.
        waiting: called once with what is waited for.

    Raises:
        UserError: the folder cannot be made or written, or another process is writing to it.
    """

    def __init__(
        self, path: Path, *, wait_s: float = _MOMENT_S, waiting: Callable[[str], None] = lambda _: None
    ) -> None:
        self.path = path
        self._lock = hold_folder(path, wait_s=wait_s, waiting=waiting)
        self._appending = threading.Lock()
        self._rows_waiting: list[bytes] = []
        self.problem: str | None = None
        with writing_to(path):
            self.checkpoints.mkdir(exist_ok=True)
            self.rows, self.link, self._log_bytes = _open_log(self.log)
            remove_half_written(path)

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

    def append(self, row: Mapping[str, Any]) -> bool:
        """Add a row to `log.jsonl`, linked to those before it; it is on the disk when this returns. NaN stays NaN.

        Returns:
            False where the disk did not take it, being full or gone. Then the row waits in memory, and goes to the disk
            before the next one or with `flush`.
        """
        with self._appending:
            stamped = {"event": row["event"], "time": datetime.now(UTC).isoformat(timespec="milliseconds"), **row}
            line, self.link = chain.linked(stamped, self.link)
            self._rows_waiting.append(line.encode() + b"\n")
            self.rows += 1
            return self._write_waiting_rows()

    def flush(self) -> bool:
        """Write the rows that wait in memory; False where the disk still does not take them."""
        with self._appending:
            return self._write_waiting_rows()

    def _write_waiting_rows(self) -> bool:
        if not self._rows_waiting:
            return True
        content = b"".join(self._rows_waiting)
        try:
            # Opened each time, so that the disk can be remounted; not made, as a log that is gone has lost its rows.
            with self.log.open("r+b", buffering=0) as log:
                log.truncate(min(self._log_bytes, log.seek(0, os.SEEK_END)))  # part of a row, from the last try
                log.seek(0, os.SEEK_END)
                _write_all(log, content)
                os.fsync(log.fileno())
        except OSError as error:
            self.problem = error.strerror
            return False
        self._log_bytes += len(content)
        self._rows_waiting.clear()
        self.problem = None
        return True

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_leftovers(run_dir: Path) -> None:
    """Tidy a finished run's folder, where a kill came before the run could: only its record is kept."""
    for path in (run_dir / "heartbeat.json", *(run_dir / "checkpoints").glob("*")):
        path.unlink(missing_ok=True)
    remove_half_written(run_dir)


def remove_half_written(folder: Path) -> None:
    """Remove what a kill left of `replace_file`."""
    for path in folder.glob(f".*{WRITING}"):
        path.unlink(missing_ok=True)


class FollowedRunFolder(RunFolder):
    """A run folder as a process sees it that trains along and leaves the writing to another: it writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows, self.link, self.problem = 0, chain.FIRST, None

    def append(self, row: Mapping[str, Any]) -> bool:  # noqa: ARG002
        return True

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        pass


def write_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode(), sync=sync)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    replace_file(path, yaml.safe_dump(dict(content), sort_keys=False).encode())


def hold_folder(folder: Path, *, wait_s: float = _MOMENT_S, waiting: Callable[[str], None] = lambda _: None) -> IO[str]:
    """Make `folder` and hold it until the file is closed, or the process is gone, however it went.

    Args:
        wait_s: how long to wait for another process that holds it; one that only looks (`is_held`) does for a moment.
        waiting: called once with what is waited for, where that may take longer.

    Raises:
        UserError: it cannot be made or written, or another process holds it (named).
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        # Open for reading: nothing is held open for writing, so that the disk under a run can be remounted.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CREAT, 0o666))
        end, told = time.monotonic() + wait_s, False
        while not _locked(file):
            holder = path.read_text().strip() or "unknown"
            if time.monotonic() >= end:
                file.close()
                raise UserError(f"{folder}: process {holder} is at work there; wait for it, or stop it first")
            if not told and wait_s > _MOMENT_S:
                waiting(f"process {holder} is at work in {folder}; waiting for it to leave")
                told = True
            time.sleep(0.1)
        path.write_text(str(os.getpid()))
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
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an OSError inside into a UserError that names `folder`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write there ({error.strerror}); expected a folder that this user may write to: choose "
            "another with VIT24H_RUNS (or --run-dir)"
        ) from error


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_log(path: Path) -> tuple[int, str, int]:
    """Rows, last link and bytes of the log, made if need be. A last line that a kill cut off is no row: it goes."""
    rows, link, whole = 0, chain.FIRST, 0
    with path.open("a+b") as file:
        file.seek(0)
        for line in file:
            if line.endswith(b"\n"):
                rows, whole = rows + 1, whole + len(line)
                link = chain.link_of(line[:-1]) or link
        file.truncate(whole)
    return rows, link, whole


def _write_all(file: RawIOBase, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]
