"""`vit24h verify`: a record held against the rules of the benchmark, one by one. What the rules are is in `rules.py`.

Must not know: the engine, torch. A re-evaluation of the weights is made elsewhere and handed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vit24h.errors import UserError, one_line
from vit24h.records import chain, reader
from vit24h.records.fields import Fields, Row, UnfitError
from vit24h.records.rules import MAY_BE_UNCHECKED, RULES, BreachError, Record, Rule, UncheckableError

Verdict = Literal["ok", "broken", "not checkable"]


@dataclass(frozen=True)
class Finding:
    """What came of holding a record against a rule."""

    rule: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Verification:
    """A record's standing to the rules, and its digest: the SHA-256 of `result.json`, in which all else is bound."""

    path: Path
    findings: tuple[Finding, ...]
    digest: str | None  # None where there is no result.json

    @property
    def holds(self) -> bool:
        """No rule is broken, and none unchecked but those that need more than the record's text."""
        return all(finding.verdict == "ok" or _may_be_open(finding) for finding in self.findings)

    @property
    def broken(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "broken"]

    def breaches(self, *, unfinished_counts: bool = True) -> list[str]:
        """The rules it breaks, in words; a run still under way breaks none by that alone."""
        return [finding.reason for finding in self.broken if unfinished_counts or finding.rule != "finished"]

    def extended(self, findings: Iterable[Finding]) -> Verification:
        """With more findings: those of a re-evaluation, or of a comparison with other records."""
        return replace(self, findings=(*self.findings, *findings))

    def to_text(self) -> str:
        """One line a rule, then the verdict."""
        verdicts = max(len(finding.verdict) for finding in self.findings)
        names = max(len(finding.rule) for finding in self.findings)
        lines = [f"{f.verdict:{verdicts}}  {f.rule:{names}}  {f.reason}" for f in self.findings]
        if self.broken:
            verdict = f"outside the benchmark: breaks {', '.join(finding.rule for finding in self.broken)}"
        elif not self.holds:
            verdict = "not verified: something could not be checked"
        else:
            verdict = "a benchmark record"
        if self.digest:
            lines.append(f"digest {self.digest}  (sha256sum of result.json: publish it, and the record is held to it)")
        return "\n".join([str(self.path), *(f"  {line}" for line in lines), f"  => {verdict}"])


def verify(path: Path, *, published: Sequence[str] = ()) -> Verification:
    """Hold the record in a run folder against every rule, from the record alone.

    Args:
        published: digests of this record, or links of its log, that were made public earlier; 16 digits or more.

    Raises:
        UserError: the folder holds no record at all, or what was published is no digest.
    """
    if not is_record(path):
        raise UserError(f"{path}: not a run's record: expected config.yaml, environment.json, log.jsonl, result.json")
    for text in published:
        if not 16 <= len(text) <= 64 or not set(text) <= set("0123456789abcdef"):
            raise UserError(f"--published {text}: expected 16 to 64 hexadecimal digits of a digest or a link")
    record = _read(path)
    digest = _digest(path / "result.json")
    findings = [_judge(name, rule, record) for name, rule in RULES.items()]
    findings += [
        _judge("published", lambda record, t=text: _published(record, digest, t), record) for text in published
    ]
    return Verification(path, tuple(findings), digest)


def find_records(folder: Path) -> list[Path]:
    """Every folder at or below `folder` that holds a record, whole or not, in order of path."""
    return sorted({file.parent for name in _TELLING for file in folder.rglob(name)})


def is_record(path: Path) -> bool:
    return any((path / name).is_file() for name in _TELLING)


# A configuration alone is no record: nothing has been run.
_TELLING = ("log.jsonl", "result.json")


def _read(path: Path) -> Record:
    problems, contents, rows = {}, {}, ()
    readers = {
        "config.yaml": reader.read_config,
        "environment.json": reader.read_json,
        "result.json": reader.read_json,
    }
    for name, read in readers.items():
        if not (path / name).is_file():
            if name != "result.json":  # whose absence says that the run is not finished
                problems[name] = "is missing"
            continue
        try:
            contents[name] = Fields(read(path / name), name)
        except UserError as error:
            problems[name] = _problem(error, path / name)
    try:
        text = (path / "log.jsonl").read_bytes()
        rows = tuple(Row(row, line) for line, row in enumerate(reader.read_rows(path / "log.jsonl"), start=1))
        if not rows:
            problems["log.jsonl"] = "is empty"
    except OSError as error:
        text, problems["log.jsonl"] = b"", f"is missing ({error.strerror})"
    except UserError as error:
        problems["log.jsonl"] = _problem(error, path / "log.jsonl")
    *lines, rest = text.split(b"\n")
    return Record(path, problems, contents, tuple(lines), bool(rest), rows)


def _problem(error: UserError, file: Path) -> str:
    """What a reader says of a file, without its path."""
    return str(error).removeprefix(str(file)).removeprefix(":").strip()


def _judge(name: str, rule: Rule, record: Record) -> Finding:
    try:
        return Finding(name, "ok", rule(record))
    except (BreachError, UnfitError) as error:
        return Finding(name, "broken", str(error))
    except UncheckableError as error:
        return Finding(name, "not checkable", str(error))
    except RecursionError:
        return Finding(name, "broken", "values nested too deeply for a record")


def _published(record: Record, digest: str | None, text: str) -> str:
    if digest and digest.startswith(text):
        return f"{text} is the digest"
    for row, line in zip(record.rows, record.lines, strict=False):
        if (chain.link_of(line) or "").startswith(text):
            return f"{text} is the link of {row.where}, {one_line(row.event)} of {one_line(str(row.get('time')))}"
    raise BreachError(f"{text} is neither the digest nor a link of the log: this is not the record that was published")


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _may_be_open(finding: Finding) -> bool:
    return finding.verdict == "not checkable" and finding.rule in MAY_BE_UNCHECKED
