"""Writes a made-up record of a full benchmark run: 24 hours on ImageNet-1k, as the training loop would leave it.

Rows go through the real run folder and its hash chain, seconds through the real budget clock; only the training itself
is made up. And it forges: edits of a finished record, with or without covering the tracks.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from vit24h.budget import BudgetClock, Position
from vit24h.config import Config, load_config
from vit24h.records import RunFolder, capture_environment
from vit24h.records.chain import FIRST, config_fingerprint, fingerprint, linked
from vit24h.records.folder import write_json, write_yaml

GPU = {"name": "NVIDIA H200", "memory_gib": 139.8, "cuda": "13.0", "capability": "9.0"}
IMAGENET = {
    "name": "imagenet",
    "fingerprint": hashlib.sha256(b"made up").hexdigest(),
    "train_images": 1_281_167,
    "val_images": 50_000,
    "classes": 1000,
}


def write_benchmark_record(
    folder: Path,
    *,
    seed: int = 0,
    arm: str = "combined",
    top1: float = 72.0,
    settings: tuple[str, ...] = (),
    gpu: dict[str, Any] | None = GPU,
    dataset: dict[str, Any] = IMAGENET,
    stops: dict[int, str] | None = None,
) -> Path:
    """A finished record in `folder`, about 30 epochs long.

    Args:
        top1: of the last weights, in percent.
        settings: overrides of the configuration.
        stops: `signal` or `kill` by the epoch in which it comes.
    """
    config = load_config(f"paper/{arm}", profile="full", overrides=[f"seed={seed}", *settings])
    with RunFolder(folder) as files:
        _Run(config, files, top1, gpu, dataset).train(stops or {})
    return folder


class _Run:
    STEP_S = 0.147

    def __init__(self, config: Config, files: RunFolder, top1: float, gpu: Any, dataset: dict[str, Any]) -> None:
        self.config, self.files, self.top1, self.dataset = config, files, top1, dataset
        self.now = 0.0  # seconds since the run began
        self.batch_size = config.optimizer.batch_size
        multiple = config.data.epoch_multiple
        self.position = Position(dataset["train_images"] // multiple * multiple)
        self.epoch = {"images": 0, "begin_train_s": 0.0}
        self.environment = _machine() | {"gpu": gpu, "dataset": dataset, "seed": config.seed}
        self.facts = {
            "parameters": 22_193_512,
            "macs": 4_630_000_000,
            "num_classes": dataset["classes"],
            "samples_per_epoch": self.position.samples_per_epoch,
            "precision": "fp16",
        }
        self.clock = self._new_clock()
        self.saved: dict[str, Any] = {}

    def train(self, stops: dict[int, str]) -> None:
        self.now += 20
        write_yaml(self.files.config, self.config.to_dict())
        write_json(self.files.environment, self.environment)
        began = {"config": config_fingerprint(self.config.to_dict()), "environment": fingerprint(self.environment)}
        self.record("start", **self.facts, fingerprints=began)
        self.phase = self.clock.phase("train")
        self.phase.__enter__()
        self.record("stage")
        per_epoch = self.position.samples_per_epoch // self.batch_size
        while self.advance(per_epoch // 2):
            self.checkpoint()
            stop = stops.pop(self.position.epoch, None)
            if stop == "signal":
                self.record("end", reason="interrupted", message=None, saved=True)
                self.resume(stopped_s=3600, lost_s=0)
            if stop == "kill":
                self.second_half()
                self.now += 5  # in which nothing was recorded, but the heartbeat was
                self.resume(stopped_s=600, lost_s=self.clock.seconds()["wall_s"] - self.saved["clock"]["wall_s"])
            if not self.second_half():
                break
        if not self.position.epoch_ended:
            self.end_epoch(complete=False)
        self.evaluate()
        self.phase.__exit__(None, None, None)
        self.finish(began)

    def second_half(self) -> bool:
        """Of an epoch; False where the budget ended within it."""
        per_epoch = self.position.samples_per_epoch // self.batch_size
        if not self.advance(per_epoch - per_epoch // 2):
            return False
        self.end_epoch()
        self.evaluate()
        return True

    def advance(self, steps: int) -> bool:
        """Train that many steps, or as many as the budget holds; False when it is over."""
        left_s = self.config.budget.hours * 3600 - self.clock.counted_s
        done = min(steps, int(left_s / self.STEP_S) + 1)
        self.now += done * self.STEP_S
        position = self.position
        position.step += done
        position.samples_seen += done * self.batch_size
        position.sample += done * self.batch_size
        self.epoch["images"] += done * self.batch_size
        if position.sample > position.samples_per_epoch - self.batch_size:
            position.epoch, position.sample = position.epoch + 1, 0
        return self.clock.counted_s < self.config.budget.hours * 3600

    def end_epoch(self, *, complete: bool = True) -> None:
        train_s = self.clock.seconds()["train_s"]
        epoch_s, images = train_s - self.epoch["begin_train_s"], self.epoch["images"]
        told = {"train_loss": 3.0, "images_per_s": images / epoch_s, "data_wait_s": 20.0, "epoch_s": epoch_s}
        self.record("epoch", **told, images=images, complete=complete)
        self.epoch = {"images": 0, "begin_train_s": train_s}

    def evaluate(self) -> None:
        with self.clock.phase("eval"):
            self.now += 60
        share = min(self.clock.counted_s / (self.config.budget.hours * 3600), 1.0)
        right = round(self.top1 * self.dataset["val_images"] / 100 * share)
        top1 = 100 * (right / self.dataset["val_images"])
        figures = {"top1": top1, "top5": 100 * ((right + 5000) / self.dataset["val_images"]), "val_loss": 1.5}
        self.record("eval", **figures, images=self.dataset["val_images"], ema=figures)
        self.accuracy = figures

    def checkpoint(self) -> None:
        with self.clock.phase("checkpoint"):
            self.now += 0.5
            self.saved = {
                "clock": self.clock.seconds(),
                "position": self.position.state_dict(),
                "epoch": dict(self.epoch),
                "rows": self.files.rows,
            }
        self.record("checkpoint", file=f"step-{self.position.step:09d}-0123456789abcdef.pt", seconds=0.5)

    def resume(self, *, stopped_s: float, lost_s: float) -> None:
        self.phase.__exit__(None, None, None)
        before = self.clock.seconds()
        self.now += stopped_s
        self.clock = self._new_clock()
        self.now += 15  # set-up
        self.clock.load_state_dict(self.saved["clock"] if lost_s else before, lost_s=lost_s)
        self.position = Position(**self.saved["position"])
        self.epoch = dict(self.saved["epoch"])
        self.record("resume", rows=self.saved["rows"], environment_changes={}, **self.facts)
        self.phase = self.clock.phase("train")
        self.phase.__enter__()

    def record(self, event: str, **content: Any) -> None:
        position = self.position
        row = {
            "time": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)).isoformat(timespec="milliseconds"),
            "epoch": position.epoch,
            "step": position.step,
            "samples_seen": position.samples_seen,
            "image_size": 224,
            "batch_size": self.batch_size,
            "learning_rate": 1.25e-4,
            "clock": {name: round(seconds, 3) for name, seconds in self.clock.seconds().items()},
        }
        self.files.append({"event": event, **row, **content})

    def finish(self, began: dict[str, str]) -> None:
        config, position = self.config, self.position
        clock = {name: round(seconds, 3) for name, seconds in self.clock.seconds().items()}
        weights = f"made-up weights of {config.name}, seed {config.seed}, top-1 {self.top1}".encode()
        self.files.weights.write_bytes(weights)
        self.record("end", reason="budget", message=None, saved=True)
        result = {
            "name": config.name,
            "profile": config.profile,
            "smoke": config.smoke,
            "seed": config.seed,
            **self.accuracy,
            "images": self.dataset["val_images"],
            "ema": self.accuracy,
            "epochs": position.epochs,
            "steps": position.step,
            "samples_seen": position.samples_seen,
            "image_size": 224,
            "train_hours": clock["train_s"] / 3600,
            "clock": clock,
            **self.facts,
            "budget": config.to_dict()["budget"],
            "incidents": 0,
            "completed": True,
            "fingerprints": {**began, "log": self.files.link, "weights": hashlib.sha256(weights).hexdigest()},
        }
        write_json(self.files.result, result)

    def _new_clock(self) -> BudgetClock:
        return BudgetClock(self.config.budget, now=lambda: self.now)


@functools.cache
def _machine() -> dict[str, Any]:
    return capture_environment(gpu=None, dataset={}, seed=0)


# -- forging --------------------------------------------------------------------------------------------------------


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text())
    edit(content)
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def edit_rows(folder: Path, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    """Edit the rows of the log and leave their links as they were."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    edit(rows)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cover_tracks(folder: Path) -> None:
    """What a thorough forger does after editing: every fingerprint, every link and the result's anchors made new."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    began = {"config": config_fingerprint(config), "environment": fingerprint(environment)}
    lines, link = [], FIRST
    for row in rows:
        row.pop("link", None)
        if "fingerprints" in row:
            row["fingerprints"] = began
        line, link = linked(row, link)
        lines.append(line + "\n")
    (folder / "log.jsonl").write_text("".join(lines))
    if (folder / "result.json").is_file():
        edit_json(folder / "result.json", lambda result: result["fingerprints"].update(began | {"log": link}))
