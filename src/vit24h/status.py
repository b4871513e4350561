"""Where a suite stands, from its folder alone: what `vit24h status` prints. Must not know: torch, the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vit24h.errors import UserError
from vit24h.progress import describe, duration
from vit24h.records import load_run
from vit24h.records.folder import is_held
from vit24h.report.latest import latest, progress
from vit24h.suite import read_plan

_BAR_WIDTH = 20


def suite_status(folder: Path) -> str:
    """A line for each planned run, and what is left of the suite.

    Raises:
        UserError: the folder holds no suite.
    """
    plan = read_plan(folder)
    if plan is None:
        raise UserError(f"{folder}: no suite has been started there; expected a folder such as runs/quick")
    runs = [_Run(folder / planned["folder"], planned) for planned in plan]
    width = max(len(run.title) for run in runs)
    lines = [f"  {run.title:<{width}}  {run.line()}" for run in runs]
    finished = sum(run.result is not None for run in runs)
    head = f"{folder.name}: {finished} of {len(runs)} runs finished"
    left_s = _left_s(runs)
    if finished < len(runs):
        head += f", about {duration(left_s)} left" if left_s is not None else ", time left not known yet"
        if not is_held(folder):
            head += "; not running: start the same command again and it goes on"
    return "\n".join([head, *lines])


class _Run:
    def __init__(self, path: Path, planned: dict[str, Any]) -> None:
        self.title = f"{planned['arm']} seed {planned['seed']}"
        self.budget_s = None if planned["hours"] is None else 3600 * planned["hours"]
        self.started = (path / "config.yaml").is_file()
        self.running = self.started and is_held(path)
        self.result = _json(path / "result.json")
        # A run that was stopped in order has no heartbeat any more: its record tells.
        self.beat = _json(path / "heartbeat.json") or (_from_record(path) if self.started else None)

    def line(self) -> str:
        if self.result is not None:
            return f"finished, top-1 {self.result['top1']:.2f} %"
        if not self.started:
            return "not started"
        state = "running" if self.running else "stopped"
        if self.beat is None:
            return state
        done = round(_BAR_WIDTH * self.beat["progress"])
        bar = "█" * done + "░" * (_BAR_WIDTH - done)
        return f"{state} {bar} {self.beat['progress']:4.0%}  " + "  ".join(describe(self.beat))

    def overhead(self) -> float | None:
        """Wall-clock seconds for a second of training, where the record tells."""
        clock = (self.result or self.beat or {}).get("clock")
        return clock["wall_s"] / clock["train_s"] if clock and clock["train_s"] > 0 else None


def _left_s(runs: list[_Run]) -> float | None:
    """Seconds until the last run is finished, with the evaluation and set-up that runs had so far; None: not known."""
    overheads = [overhead for run in runs if (overhead := run.overhead()) is not None]
    if not overheads:
        return None
    overhead = sum(overheads) / len(overheads)
    finished = [run.result["clock"]["train_s"] for run in runs if run.result is not None]
    typical_s = sum(finished) / len(finished) if finished else None
    left_s = 0.0
    for run in runs:
        if run.result is not None:
            continue
        if run.beat is not None and run.beat["left_s"] is not None:
            left_s += overhead * run.beat["left_s"]
        elif (train_s := run.budget_s or typical_s) is not None:
            left_s += overhead * train_s
        else:
            return None
    return left_s


def _from_record(path: Path) -> dict[str, Any] | None:
    run = load_run(path)
    if not run.rows:
        return None
    known, row = latest(run), run.rows[-1]
    share = progress(run)
    return {
        "progress": share,
        "image_size": row["image_size"],
        "epochs": known.epochs or 0.0,
        "top1": known.top1,
        "images_per_s": None,
        "waiting_share": 0.0,
        "left_s": known.train_s * (1 - share) / share if known.train_s and share else None,
        "clock": row["clock"],
    }


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged: not valid JSON") from error
