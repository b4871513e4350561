"""Reading run folders: configuration, environment, the rows that count, the result. Must not know torch or engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from vit24h.config import parse_yaml
from vit24h.errors import UserError

State = Literal["finished", "unfinished", "failed"]


@dataclass(frozen=True)
class Run:
    """One run's record. Percent are 0 to 100, seconds are seconds."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    rows: list[dict[str, Any]] = field(repr=False)  # without those that a later resume went back behind
    result: dict[str, Any] | None

    @property
    def suite(self) -> str:
        return self.path.parent.parent.name

    @property
    def arm(self) -> str:
        return self.config["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def state(self) -> State:
        if self.result is not None:
            return "finished"
        ends = self.rows_of("end")
        return "failed" if ends and ends[-1].get("reason") == "failed" and ends[-1] is self.rows[-1] else "unfinished"

    def rows_of(self, event: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["event"] == event]

    def curve(self) -> list[tuple[float, float]]:
        """(hours of training, top-1 in percent of the raw weights) at every evaluation."""
        try:
            return [(row["clock"]["train_s"] / 3600, row["top1"]) for row in self.rows_of("eval")]
        except (KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{self.path / 'log.jsonl'}: damaged: an evaluation without its time or top-1") from error


def find_runs(folder: Path) -> list[Run]:
    """Every run below `folder` that has begun, in order of path."""
    return [
        load_run(config.parent)
        for config in sorted(folder.glob("**/config.yaml"))
        if (config.parent / "log.jsonl").is_file()
    ]


def load_run(path: Path) -> Run:
    """Read one run folder.

    Raises:
        UserError: a file is missing or is not what its name says, with the line.
    """
    config = read_config(path / "config.yaml")
    environment, result = (read_json(path / name) for name in ("environment.json", "result.json"))
    return Run(path, config, environment or {}, effective_rows(read_rows(path / "log.jsonl")), result)


def read_config(path: Path) -> dict[str, Any]:
    """A run folder's `config.yaml` as it is; its fields need not be those of today."""
    try:
        config = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path.parent}: not a run folder: no config.yaml ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: damaged: not valid YAML") from error
    if not isinstance(config, dict) or type(config.get("name")) is not str or type(config.get("seed")) is not int:
        raise UserError(f"{path}: damaged: expected a resolved configuration with name and seed")
    return config


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a `log.jsonl`, without their links; a last line that a kill cut off is not one."""
    rows = []
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from error
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: damaged: not a JSON object") from error
        if not isinstance(row, dict) or not isinstance(row.get("event"), str):
            raise UserError(f"{path} line {number}: damaged: expected an object with an event")
        if row["event"] == "resume" and (type(row.get("rows")) is not int or not 0 <= row["rows"] < number):
            raise UserError(f"{path} line {number}: damaged: expected the number of rows that it goes back to")
        row.pop("link", None)  # of the hash chain, which `verify` looks at
        rows.append(row)
    return rows


def effective_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that the run's final state stands on.

    A `resume` row says how many `rows` the log had when its checkpoint was saved. Stages, epochs, evaluations and
    compilations reported after that were lost with the stop and are done again, so the earlier ones do not count; nor
    do corrupt images, which are met again.
    """
    kept: list[tuple[int, dict[str, Any]]] = []
    for index, row in enumerate(rows):
        if row["event"] == "resume":
            kept = [(i, old) for i, old in kept if i < row["rows"] or not _done_again(old)]
        kept.append((index, row))
    return [row for _, row in kept]


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not valid JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: expected a JSON object")
    return content


def _done_again(row: dict[str, Any]) -> bool:
    """A corrupt image is met again; other incidents were of their time."""
    return row["event"] in {"stage", "epoch", "eval", "compile"} or row.get("kind") == "corrupt_image"
