"""Links and fingerprints: how an edited, removed or moved row of a log shows, and an edited file of a record.

The last member of every row of `log.jsonl` is `link`, the SHA-256 of the link before it (nothing, for the first row)
followed by the row's own text without that member. So a link stands for all rows up to its own. Whoever rewrites every
row from the edit on gets a whole chain again: only a link or digest published earlier can tell (BENCHMARK.md).

Must not know: what the rows mean, torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIRST = ""  # the link before the first row
_LINKED = re.compile(rb'(\{.*), "link": "([0-9a-f]{64})"\}', re.DOTALL)


def linked(row: Mapping[str, Any], previous: str) -> tuple[str, str]:
    """A row as a line of the log (without its end), and its link."""
    text = json.dumps(row)
    link = _link(text.encode(), previous)
    return f'{text[:-1]}, "link": "{link}"}}', link


def link_of(line: bytes) -> str | None:
    """The link that a line of the log carries; None where it carries none."""
    found = _LINKED.fullmatch(line)
    return found[2].decode() if found else None


def first_break(lines: Sequence[bytes]) -> str | None:
    """Where the chain of a log's lines (without their ends) breaks first, in words; None where it is whole."""
    links = [link_of(line) for line in lines]
    previous = FIRST
    for number, (line, link) in enumerate(zip(lines, links, strict=True), start=1):
        if link is None:
            return f"log.jsonl line {number} carries no link of the hash chain: the row was not written by this program"
        text = _LINKED.fullmatch(line)[1] + b"}"
        if _link(text, previous) != link:
            for after, candidate in enumerate([FIRST, *links]):
                if candidate is not None and _link(text, candidate) == link:
                    place = f"was written after line {after}" if after else "was written first"
                    return f"log.jsonl line {number} {place}: rows were moved or added"
            return f"log.jsonl line {number} is not what was written: it was edited, or rows before it were removed"
        previous = link
    return None


def fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of a mapping's content, hexadecimal: equal however its file is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def config_fingerprint(config: Mapping[str, Any]) -> str:
    """The fingerprint of a resolved configuration less what changes no result: `runtime`, and where the data lie."""
    counted = {key: value for key, value in config.items() if key != "runtime"}
    if isinstance(data := counted.get("data"), Mapping):
        counted["data"] = {key: value for key, value in data.items() if key != "path"}
    return fingerprint(counted)


def file_sha256(path: Path) -> str:
    """As `sha256sum` prints it. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(text: bytes, previous: str) -> str:
    return hashlib.sha256(previous.encode() + text).hexdigest()
