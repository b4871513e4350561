"""`vit24h export`: run records as they are published, text only and without this machine's paths.

Of a run folder four files go along. `config.yaml` is written without `data.path`, which is outside its fingerprint; the
others are bound by the hash chain and go byte for byte, so a path in one of them cannot be taken out: it is named, and
whoever publishes decides. Must not know: torch, the report.
"""

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from vit24h.errors import UserError, one_line
from vit24h.records.folder import is_held, writing_to
from vit24h.records.reader import read_config
from vit24h.records.verify import Finding, find_records, verify

RECORD_FILES = ("config.yaml", "environment.json", "log.jsonl", "result.json")
"""What a published record consists of; an unfinished one has no `result.json`."""


@dataclass(frozen=True)
class Exported:
    """What was written: one folder a run, and their bytes."""

    runs: tuple[Path, ...]
    size: int


def export_records(source: Path, destination: Path, *, unfinished: bool = False, keep_paths: bool = False) -> Exported:
    """Copy the records at or below `source` to the same places below `destination`.

    Nothing is written unless all of it can be.

    Args:
        unfinished: take along runs that are unfinished or failed.
        keep_paths: take along logs that hold paths or the name of this machine.

    Raises:
        UserError: there are no records, one is damaged, unfinished or at work, one holds a path, or something lies at
            its destination.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; expected a suite's, such as runs/full, or a run's")
    if destination.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{destination}: lies in {source}, whose records are to be copied: choose a place outside it")
    records = find_records(source)
    if not records:
        raise UserError(f"{source}: no records below it: expected folders with log.jsonl and result.json")
    targets = {record: destination / record.relative_to(source) for record in records}
    _require_free(targets.values())
    _require_whole(records, source, unfinished)
    contents = {record: _contents(record) for record in records}
    if not keep_paths:
        _require_no_paths(contents, source)
    with writing_to(destination):
        for record, files in contents.items():
            _write_folder(targets[record], files)
    return Exported(tuple(targets.values()), sum(len(text) for files in contents.values() for text in files.values()))


def paths_in(text: str) -> list[str]:
    """What in a record's text is a path of a machine, or the name of this one; each once, in order of appearance."""
    found = _ABSOLUTE_PATH.findall(text)
    name = socket.gethostname().split(".")[0]
    if len(name) >= _SHORTEST_HOST_NAME and re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text):
        found.append(name)
    return list(dict.fromkeys(found))


def _require_free(targets: Iterable[Path]) -> None:
    taken = [target for target in targets if target.exists()]
    if taken:
        raise UserError(
            f"{_listed(str(target) for target in taken)}: there already, and a record is not written over: choose "
            "another destination, or remove it first"
        )


def _require_whole(records: Sequence[Path], source: Path, unfinished: bool) -> None:
    """Every record can be read and is as its run wrote it; finished ones only, unless `unfinished`."""
    for record in records:
        if is_held(record):
            raise UserError(f"{record}: a process is at work there: wait for its end, or stop it first")
    verifications = {record: verify(record) for record in records}
    for record, verification in verifications.items():
        broken = [finding for finding in verification.findings if finding.rule in _OF_A_WHOLE_RECORD and _open(finding)]
        if broken:
            raise UserError(
                f"{record}: not the record that its run wrote, and not to be published as one: "
                + "; ".join(finding.reason for finding in broken)
            )
    if unfinished:
        return
    open_ended = [
        f"{_name(record, source)} ({finding.reason})"
        for record, verification in verifications.items()
        for finding in verification.findings
        if finding.rule == "finished" and _open(finding)
    ]
    if open_ended:
        raise UserError(
            f"{source}: {_listed(open_ended)}: train to the end first, or take such runs along with --unfinished"
        )


def _open(finding: Finding) -> bool:
    return finding.verdict != "ok"


def _contents(record: Path) -> dict[str, bytes]:
    config = read_config(record / "config.yaml")
    if isinstance(config.get("data"), dict):
        config["data"]["path"] = None
    files = {"config.yaml": yaml.safe_dump(config, sort_keys=False).encode()}
    for name in RECORD_FILES[1:]:
        if (record / name).is_file():
            try:
                files[name] = (record / name).read_bytes()
            except OSError as error:
                raise UserError(f"{record / name}: cannot be read: {error.strerror}") from error
    return files


def _require_no_paths(contents: dict[Path, dict[str, bytes]], source: Path) -> None:
    told = [
        f"{_name(record, source)}/{name} line {number} ({one_line(', '.join(found))})"
        for record, files in contents.items()
        for name, text in files.items()
        for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1)
        if (found := paths_in(line))
    ]
    if told:
        raise UserError(
            f"{source}: paths or the name of this machine in {_listed(told)}. They are part of the hash chain and "
            "cannot be taken out: look at them, and publish them as they are with --keep-paths"
        )


def _write_folder(target: Path, files: dict[str, bytes]) -> None:
    """Written beside and renamed: a stop leaves a whole record there, or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as beside:
        folder = Path(beside) / target.name
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_bytes(text)
        folder.rename(target)


def _name(record: Path, source: Path) -> str:
    return record.name if record == source else record.relative_to(source).as_posix()


def _listed(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if names[most:] else "")


_OF_A_WHOLE_RECORD = ("files", "hash chain", "fingerprints")
_SHORTEST_HOST_NAME = 4  # shorter ones are words that stand in any text
# Not part of a word, an address or a relative path.
_ABSOLUTE_PATH = re.compile(r"(?<![\w./:~-])~?/[\w.@+-]{2,}(?:/[^\s\"',;:()]+)*")
