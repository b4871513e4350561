"""Puts the packages of the locks, and this checkout, into a Python environment; does nothing when they are there.

Run by bootstrap.sh, with `python -I`; standard library and pip only:

    PYTHON bootstrap.py create FOLDER       makes a virtual environment with the packages of requirements.lock
    PYTHON bootstrap.py complete [--test]   links this checkout into the environment of PYTHON, adds the tests'
                                            packages, prints the folder of its commands; exit status 3 if the
                                            packages of requirements.lock are not in it

An environment made here has a folder `.vit24h/` with a stamp for each lock that is installed. The stamp is written
last: what was interrupted has none and is done again. Only such an environment is ever emptied. Any other one (conda,
a container, made by hand) is judged by the versions it holds.

Must not know how a Python is found, nor what the packages are for.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[1]
BASE_LOCK = ROOT / "requirements.lock"
TEST_LOCK = ROOT / "tests" / "requirements.lock"
PACKAGE = "vit24h"

DISK_GB = 10  # free space to start with: 5 for the packages, 2.5 for their wheels, the same again for pip's cache
REPORT_EVERY_S = 20

NOT_THIS_ENVIRONMENT = 3  # exit status


class SetupError(Exception):
    """What the user can mend: one line that says what and how."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="bootstrap.py")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("create").add_argument("folder", type=Path)
    actions.add_parser("complete").add_argument("--test", action="store_true")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        if options.action == "create":
            create(Environment(options.folder.resolve()))
            return 0
        environment = Environment(Path(sys.prefix).resolve())
        if difference := environment.difference_to(BASE_LOCK):
            if environment.is_activated and not environment.is_ours:
                _say(f"Not using the activated environment {environment.folder}: {difference}.")
            return NOT_THIS_ENVIRONMENT
        complete(environment, test=options.test)
    except (SetupError, OSError) as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("Stopped. The next start does the unfinished part again.")
        return 128 + signal.SIGINT
    _say(f"Environment: {environment.folder}")
    print(sysconfig.get_path("scripts"))
    return 0


def create(environment: Environment) -> None:
    """Makes a virtual environment with the packages of requirements.lock, for the Python that runs this."""
    folder = environment.folder
    if folder.exists() and not environment.is_ours and any(path.name != LOCK_FILE for path in folder.iterdir()):
        raise SetupError(
            f"{folder} does not hold the packages of requirements.lock and was not made here, so it is left alone; "
            "remove it, or name another folder in VIT24H_VENV"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with environment.locked():
        if environment.is_ours and not environment.difference_to(BASE_LOCK) and environment.runs_this_python_version():
            return  # another start has made it while this one waited
        if environment.is_ours:
            _say(f"Emptying {folder}: {environment.difference_to(BASE_LOCK) or 'it is for another Python'} ...")
        environment.empty()
        check_disk_space(folder, DISK_GB)
        version = ".".join(map(str, sys.version_info[:3]))
        _say(f"Installing the packages of requirements.lock for Python {version} into {folder} (about 5 GB; once) ...")
        # Not sys.executable: it may belong to the environment that was just emptied.
        base_python = getattr(sys, "_base_executable", sys.executable)
        make = [base_python, "-I", "-m", "venv", folder]
        made = subprocess.run(make, capture_output=True, text=True, check=False)
        if made.returncode:
            said = (made.stdout + made.stderr).splitlines() or ["no reason given"]
            raise SetupError(f"{base_python} cannot make a virtual environment: {said[-1]}")
        environment.install(BASE_LOCK, read_lock(BASE_LOCK))


def complete(environment: Environment, *, test: bool) -> None:
    """Adds what the running environment lacks of this checkout and, with `test`, of the tests' packages.

    The packages of requirements.lock stay as they are.
    """
    if environment.links_to_this_checkout() and not (test and environment.difference_to(TEST_LOCK)):
        return
    with environment.locked():
        if not environment.links_to_this_checkout():
            _say(f"Linking this checkout into {environment.folder} ...")
            environment.pip("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        if test and environment.difference_to(TEST_LOCK):
            _say(f"Installing what only the tests need (tests/requirements.lock) into {environment.folder} ...")
            in_base = {pin.name for pin in read_lock(BASE_LOCK)}
            only_in_tests = [pin for pin in read_lock(TEST_LOCK) if pin.name not in in_base]
            # Reinstalled, as an interrupted start may have left one of them half there.
            environment.install(TEST_LOCK, only_in_tests, "--force-reinstall")


def check_disk_space(folder: Path, needed_gb: float) -> None:
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"{folder} is on a disk with {free_gb:.1f} GB free and the installation needs {needed_gb:g} GB; "
            "make room, or name a folder on another disk in VIT24H_VENV"
        )


class Pin(NamedTuple):
    """One package of a lock."""

    name: str
    version: str
    marker: str  # for which Pythons and systems; "" for all
    text: str  # the entry with its hashes


def read_lock(lock: Path) -> list[Pin]:
    text = lock.read_text()
    entries = list(re.finditer(r"^([\w.-]+)==([^\s;]+)(?: ; (.*?))?(?: \\)?$", text, re.MULTILINE))
    ends = [entry.start() for entry in entries[1:]] + [len(text)]
    return [
        Pin(entry[1], entry[2], entry[3] or "", text[entry.start() : end])
        for entry, end in zip(entries, ends, strict=True)
    ]


LOCK_FILE = ".vit24h.lock"  # held by the start that changes an environment


class Environment:
    """A Python environment on disk: what it holds, and how it is changed.

    What only the environment's own Python can tell (which packages it holds, unless there is a stamp) is asked of the
    running one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / ".vit24h"

    @property
    def python(self) -> Path:
        is_running = self.folder == Path(sys.prefix).resolve()
        return Path(sys.executable) if is_running else self.folder / "bin" / "python"

    @property
    def is_ours(self) -> bool:
        return self._state.is_dir()

    @property
    def is_activated(self) -> bool:
        activated = (os.environ.get("VIRTUAL_ENV"), os.environ.get("CONDA_PREFIX"))
        return any(folder and Path(folder).resolve() == self.folder for folder in activated)

    def difference_to(self, lock: Path) -> str | None:
        """What is not as in `lock`, in words; None if all is."""
        if not self.is_ours:
            return _difference_of_installed(read_lock(lock))
        stamp = self._stamp_file(lock)
        if stamp.is_file() and stamp.read_text() == self._stamp(lock):
            return None
        return f"not installed to the end, or {lock.relative_to(ROOT)} has changed"

    def links_to_this_checkout(self) -> bool:
        """Is the package that the running environment imports this checkout's, with its command?"""
        try:
            spec = importlib.util.find_spec(PACKAGE)
            record = importlib.metadata.distribution(PACKAGE).files  # None until pip is through
        except (ImportError, ValueError):
            return False
        if spec is None or spec.origin is None or record is None:
            return False
        return ROOT in Path(spec.origin).resolve().parents and Path(sysconfig.get_path("scripts"), PACKAGE).is_file()

    def runs_this_python_version(self) -> bool:
        question = [self.python, "-I", "-c", "import sys; print(sys.version_info[:2])"]
        try:
            answer = subprocess.run(question, capture_output=True, text=True, check=False).stdout
        except OSError:  # its base Python is gone
            return False
        return answer.strip() == str(sys.version_info[:2])

    def empty(self) -> None:
        """Makes this environment ours, and empty. The stamps go first."""
        self._state.mkdir(exist_ok=True)
        for path in [*self._state.iterdir(), *self.folder.iterdir()]:
            if path == self._state or path.name == LOCK_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def install(self, lock: Path, pins: list[Pin], *options: str) -> None:
        """Installs `pins`, those of `lock` that this environment is to get, and stamps it with the lock."""
        started = time.monotonic()
        with tempfile.NamedTemporaryFile("w", suffix=".lock") as wanted:
            wanted.write("".join(pin.text for pin in pins))
            wanted.flush()
            # --no-deps: a lock is the whole list.
            self.pip("--require-hashes", "--no-deps", *options, "--requirement", wanted.name)
        if self.is_ours:
            written = self._stamp_file(lock).with_suffix(".new")
            written.write_text(self._stamp(lock))
            written.replace(self._stamp_file(lock))
        _say(f"Installed in {time.monotonic() - started:.0f} s.")

    def pip(self, *arguments: str) -> None:
        """`pip install`, with a line now and then. Only while locked. SetupError with the reason if it fails."""
        command = [self.python, "-I", "-m", "pip", "install", "--no-input", "--progress-bar=off", *arguments]
        started = time.monotonic()
        # Wheels of 3 GB pass through pip's temporary folder. /tmp may be small; this is on the disk that was checked.
        with tempfile.TemporaryDirectory(dir=self._state if self.is_ours else None) as folder:
            log = Path(folder, "pip.log")
            with log.open("w") as output:
                process = subprocess.Popen(
                    command,
                    env=os.environ | {"TMPDIR": folder, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[self._lock],  # if this process is killed, pip holds the lock until it is through as well
                )
            try:
                while (status := _wait(process, REPORT_EVERY_S)) is None:
                    _say(f"  {time.monotonic() - started:.0f} s: {_progress(log.read_text(errors='replace'))}")
            finally:
                process.terminate()
                process.wait()
            if status:
                raise SetupError(_reason(log.read_text(errors="replace")))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One start at a time changes an environment; the others wait."""
        with (self.folder / LOCK_FILE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"Another start is at work on {self.folder}; waiting for it ...")
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._lock = lock.fileno()
            yield

    def _stamp_file(self, lock: Path) -> Path:
        return self._state / ("tests" if lock == TEST_LOCK else "packages")

    def _stamp(self, lock: Path) -> str:
        # With the folder, as the commands of a virtual environment that was moved point to where it was.
        return f"{hashlib.sha256(lock.read_bytes()).hexdigest()}  {self.folder}\n"


def _difference_of_installed(pins: list[Pin]) -> str | None:
    try:
        from packaging.markers import Marker
        from packaging.version import Version
    except ImportError:
        return "it has no packaging"
    for pin in pins:
        if pin.marker and not Marker(pin.marker).evaluate():
            continue
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            return f"it has no {pin.name}"
        if Version(version) != Version(pin.version):
            return f"it has {pin.name} {version}, and the lock {pin.version}"
    return None


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _progress(pip_log: str) -> str:
    if "\nInstalling collected packages" in pip_log:
        return "unpacking"
    return f"{len(re.findall('^Collecting ', pip_log, re.MULTILINE))} packages fetched"


def _reason(pip_log: str) -> str:
    """Why pip failed, in one line."""
    if re.search("No space left on device|Disk quota exceeded", pip_log):
        return "the disk is full; make room, or name a folder on another disk in VIT24H_VENV"
    if re.search(r"Retry\(total=0|Max retries exceeded|ReadTimeoutError|IncompleteRead|ConnectionResetError", pip_log):
        return "the package index was not reached; check network and proxy (HTTPS_PROXY) and start again"
    if "DO NOT MATCH THE HASHES" in pip_log:
        return "a package is not the one that was locked (its hash differs); a proxy or mirror may have changed it"
    errors = [line for line in pip_log.splitlines() if line.startswith("ERROR: ")] or pip_log.splitlines()
    return f"pip failed: {errors[-1].removeprefix('ERROR: ') if errors else 'it said nothing'}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
