"""Writes made-up run folders as a training run would leave them, for tests of the report.

Every environment.json written here says so (`made_up`), so that none is ever taken for a measurement.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from vit24h.records.chain import FIRST, config_fingerprint, fingerprint, linked

MACHINES = {
    "h200": {
        "gpu": {"name": "NVIDIA H200", "memory_gib": 139.8, "driver": "580.95.05", "cuda": "13.0"},
        "cpu": {"model": "Intel(R) Xeon(R) Platinum 8468", "cores": 16},
    },
    "a100": {
        "gpu": {"name": "NVIDIA A100-SXM4-40GB", "memory_gib": 39.4, "driver": "580.95.05", "cuda": "13.0"},
        "cpu": {"model": "AMD EPYC 7742 64-Core Processor", "cores": 12},
    },
    "cpu": {"gpu": None, "cpu": {"model": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 2}},
}
PROFILES: dict[str, dict[str, Any]] = {
    "full": {
        "data": {"train_images": 1_281_167, "val_images": 50_000, "classes": 1000},
        "config": {"budget": {"hours": 24}},
        "sizes": (32, 32, 224),  # initial, step, final
        "samples_per_epoch": 1_281_024,
        "images_per_s": 1100,  # at the final size
    },
    "mini": {
        "data": {"train_images": 24_000, "val_images": 5_000, "classes": 100},
        "config": {"budget": {"hours": 1 / 6}, "model": {"image_size": 64, "patch_size": 8, "embed_dim": 192}},
        "sizes": (16, 16, 64),
        "samples_per_epoch": 23_808,
        "images_per_s": 330,
    },
    "quick": {
        "data": {"train_images": 2_000, "val_images": 400, "classes": 10},
        "config": {
            "smoke": True,
            "budget": {"hours": 0.011},
            "model": {"image_size": 48, "patch_size": 8, "embed_dim": 96},
            "data": {"synthetic": True},
        },
        "sizes": (16, 16, 48),
        "samples_per_epoch": 1_792,
        "images_per_s": 420,
    },
}
PROFILES["paper-epochs"] = PROFILES["full"] | {"config": {"budget": {"hours": None, "epochs": 18}}}
EPOCHS = {"locality": 15, "curriculum": 30, "combined": 30, "localvit": 6}  # of profile paper-epochs
CEILINGS = {"baseline": 62.0, "locality": 68.0, "curriculum": 65.0, "combined": 72.0, "localvit": 44.0}
COSTS = {"locality": 1.2, "combined": 1.2, "localvit": 2.9}  # step time ÷ DeiT-S's
PARAMETERS = {"baseline": 22_050_664, "curriculum": 22_050_664, "localvit": 22_462_000}


def write_run(
    suite_folder: Path,
    arm: str,
    seed: int = 0,
    *,
    profile: str = "mini",
    machine: str = "cpu",
    state: str = "finished",
    done: float = 1.0,
    lost_s: float = 0.0,
    waiting: float = 0.04,
    compile_s: float = 0.0,
    resumed_on: str | None = None,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write one run folder and return it.

    Args:
        state: finished | unfinished | failed, as the reader will say.
        done: share of the budget that was trained before the record stops.
        lost_s: seconds lost to an interruption halfway; 0: none happened.
        resumed_on: the machine that it went on with after that interruption; the same one unless given.
        waiting: share of the training time spent waiting for data, at the smallest size twelve times of it.
        compile_s: of the first step at each image size; 0: nothing is compiled.
        changes: laid over the config, nested.
    """
    folder = suite_folder / arm / f"seed{seed}"
    folder.mkdir(parents=True)
    setting = PROFILES[profile]
    config = _config(arm, seed, profile, changes or {})
    _write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))
    environment = MACHINES[machine] | {
        "made_up": "by tests/record_factory.py; not a run",
        "memory_gib": 24.0,
        "python": "3.11.9",
        "packages": {"torch": "2.11.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "image": None,
        "code": {"fingerprint": _sha256("code")},
        "dataset": {"name": "images", "fingerprint": _sha256(profile), **setting["data"]},
        "processes": 1,
        "seed": seed,
    }
    _write_text(folder / "environment.json", json.dumps(environment))
    moved_to = MACHINES[resumed_on] if resumed_on else {}
    rows, result = _train(
        arm, seed, config, setting, done=done, lost_s=lost_s, waiting=waiting, compile_s=compile_s, moved_to=moved_to
    )
    if state != "finished":
        rows = [row for row in rows if row["event"] != "end"]
    if state == "failed":
        message = "the loss was not finite in 10 steps in a row, and again after going back to a checkpoint"
        rows.append(rows[-1] | {"event": "end", "reason": "failed", "message": message})
    began = {"config": config_fingerprint(config), "environment": fingerprint(environment)}
    rows[0]["fingerprints"] = began
    lines, link = [], FIRST
    for row in rows:
        line, link = linked(row, link)
        lines.append(line + "\n")
    _write_text(folder / "log.jsonl", "".join(lines))
    if state == "finished":
        anchors = {**began, "log": link, "weights": _sha256(f"{arm} {seed}")}
        _write_text(folder / "result.json", json.dumps(result | {"fingerprints": anchors}))
    return folder


def write_suite(suite_folder: Path, arms: dict[str, dict[str, Any]], seeds: int = 1, **common: Any) -> Path:
    """Write several arms: `{"baseline": {}, "combined": {"state": "failed"}}`."""
    for arm, options in arms.items():
        for seed in range(seeds):
            write_run(suite_folder, arm, seed, **(common | options))
    return suite_folder


PAPER_ARMS: dict[str, dict[str, Any]] = {"baseline": {}, "locality": {}, "curriculum": {}, "combined": {}}


def _config(arm: str, seed: int, profile: str, changes: dict[str, Any]) -> dict[str, Any]:
    base = Path(__file__).resolve().parents[1] / "configs" / "base.yaml"
    config = yaml.safe_load(base.read_text()) | {"profile": profile, "smoke": False}
    initial, step, final = PROFILES[profile]["sizes"]
    own: dict[str, Any] = {"name": arm, "seed": seed}
    if arm in ("locality", "localvit") or arm.startswith("combined"):
        own["model"] = {"feed_forward": "localvit" if arm == "localvit" else "locality"}
    if arm == "curriculum" or arm.startswith("combined"):
        own["curriculum"] = {"initial_size": initial, "size_step": step}
        if profile in ("full", "paper-epochs"):
            own["curriculum"]["epochs_per_stage"] = 5
        else:
            own["curriculum"]["budget_fraction_per_stage"] = 0.8 / ((final - initial) // step)
    _lay_over(config, own)
    _lay_over(config, copy.deepcopy(PROFILES[profile]["config"]))
    if profile == "paper-epochs":
        config["budget"]["epochs"] = EPOCHS.get(arm, 18)
    _lay_over(config, changes)
    return config


def _train(
    arm: str,
    seed: int,
    config: dict[str, Any],
    setting: dict[str, Any],
    *,
    done: float,
    lost_s: float,
    waiting: float,
    compile_s: float,
    moved_to: dict[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    chance = random.Random(f"{arm} {seed}")
    per_epoch, batch_size = setting["samples_per_epoch"], config["optimizer"]["batch_size"]
    final_size = config["model"]["image_size"]
    budget_s = (config["budget"]["hours"] or math.inf) * 3600
    parameters = PARAMETERS.get(arm, 22_193_512)
    clock = dict.fromkeys(("train_s", "eval_s", "checkpoint_s", "setup_s", "lost_s", "wall_s"), 0.0)
    position = {"epoch": 0, "step": 0, "samples_seen": 0, "image_size": 0, "batch_size": batch_size}
    rows: list[dict[str, Any]] = []
    seconds = 0

    def log(event: str, **what: Any) -> None:
        nonlocal seconds
        seconds += 1
        time = f"2026-01-01T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"
        clock["wall_s"] = sum(value for phase, value in clock.items() if phase != "wall_s")
        rows.append({"event": event, "time": time, **position, "learning_rate": 1.25e-4, "clock": dict(clock)} | what)

    def begin_stage() -> None:
        position["image_size"] = size_now()
        log("stage")
        if compile_s:
            clock["train_s"] += compile_s
            log("compile", compile_s=compile_s)

    def size_now() -> int:
        curriculum, stage = config["curriculum"], 0
        if curriculum["initial_size"] is None:
            return final_size
        if curriculum["epochs_per_stage"] is not None:
            stage = position["epoch"] // curriculum["epochs_per_stage"]
        else:
            stage = int(clock["train_s"] / budget_s / curriculum["budget_fraction_per_stage"] + 1e-9)
        return min(final_size, curriculum["initial_size"] + stage * curriculum["size_step"])

    def accuracy() -> dict[str, Any]:
        epochs = position["samples_seen"] / per_epoch
        gain = epochs / (epochs + (14 if per_epoch > 1e6 else 9))
        classes, images = setting["data"]["classes"], setting["data"]["val_images"]
        blur = 0.8 if position["image_size"] < final_size / 2 else 1.0  # trained on small images, tested on large ones
        top1 = 100 / classes + (CEILINGS.get(arm, 66.0) - 100 / classes) * gain * blur + chance.gauss(0, 0.35)
        top1 = min(100.0, max(0.0, round(top1 * images / 100) * 100 / images))
        top5 = min(100.0, round((top1 + (100 - top1) * 0.42) * images / 100) * 100 / images)
        val_loss = math.log(classes) * (1 - top1 / 110)
        ema_top1, ema_top5 = (round(share * images / 100) * 100 / images for share in (top1 * 0.9, top5 * 0.95))
        ema = {"top1": ema_top1, "top5": ema_top5, "val_loss": val_loss * 1.1}
        return {"top1": top1, "top5": top5, "val_loss": val_loss, "images": images, "ema": ema}

    clock["setup_s"] = budget_s * 0.002 if budget_s < math.inf else 90.0
    position["image_size"] = final_size  # no stage has begun
    facts = {
        "parameters": parameters,
        "macs": 4_608_000_000,
        "num_classes": setting["data"]["classes"],
        "samples_per_epoch": per_epoch,
        "precision": "fp16",
    }
    log("start", **facts)
    clock["train_s"] = budget_s * 0.001 if budget_s < math.inf else 30.0  # waiting for the first batch
    begin_stage()
    stop_s = budget_s * done
    stop_epochs = (config["budget"]["epochs"] or math.inf) * done
    steps_per_epoch = per_epoch // batch_size
    slice_ = -(-steps_per_epoch // 8) * batch_size
    epoch_started_s, waited_s, epoch_samples = 0.0, 0.0, 0
    evaluated: dict[str, Any] = {}
    while clock["train_s"] < stop_s and position["epoch"] < stop_epochs:
        size = size_now()
        if size != position["image_size"]:
            begin_stage()
        relative = (size / final_size) ** 2
        step_s = slice_ * (0.06 + 0.94 * relative) * COSTS.get(arm, 1.0) / setting["images_per_s"]
        wait_s = slice_ * waiting / setting["images_per_s"] * (3 if relative < 0.1 else 1)
        spent_s = (step_s + wait_s) * chance.uniform(0.98, 1.02)
        left = steps_per_epoch * batch_size - epoch_samples
        share = min(1.0, (stop_s - clock["train_s"]) / spent_s, left / slice_)
        samples = min(left, math.ceil(slice_ * share / batch_size) * batch_size)
        clock["train_s"] += spent_s * share
        waited_s += wait_s * share
        position["samples_seen"] += samples
        position["step"] = position["samples_seen"] // batch_size
        epoch_samples += samples
        if lost_s and not clock["lost_s"] and clock["train_s"] > stop_s / 2:
            clock["lost_s"] = lost_s
            log("resume", **facts, rows=len(rows), environment_changes=moved_to)
        if epoch_samples == steps_per_epoch * batch_size:
            position["epoch"] += 1
            epoch_s = clock["train_s"] - epoch_started_s
            speed = {"images_per_s": per_epoch / epoch_s, "data_wait_s": waited_s, "epoch_s": epoch_s}
            log("epoch", train_loss=3.0, images=epoch_samples, complete=True, **speed)
            clock["eval_s"] += setting["data"]["val_images"] / setting["images_per_s"] / 2
            evaluated = accuracy()
            log("eval", **evaluated)
            clock["checkpoint_s"] += 0.4
            log("checkpoint", file=f"step-{position['step']}", seconds=0.4)
            epoch_started_s, waited_s, epoch_samples = clock["train_s"], 0.0, 0
    if epoch_samples and done >= 1:
        epoch_s = clock["train_s"] - epoch_started_s
        speed = {"images_per_s": epoch_samples / epoch_s, "data_wait_s": waited_s, "epoch_s": epoch_s}
        log("epoch", train_loss=3.0, images=epoch_samples, complete=False, **speed)
        clock["eval_s"] += setting["data"]["val_images"] / setting["images_per_s"] / 2
        evaluated = accuracy()
        log("eval", **evaluated)
    if done < 1:
        log("checkpoint", file=f"step-{position['step']}", seconds=0.4)
    log("end", reason="budget", message=None, saved=True)
    result = {
        "name": arm,
        "seed": seed,
        "profile": config["profile"],
        **evaluated,
        "epochs": position["epoch"] + epoch_samples / per_epoch,
        "steps": position["step"],
        "samples_seen": position["samples_seen"],
        "train_hours": clock["train_s"] / 3600,
        "clock": dict(clock),
        "image_size": position["image_size"],
        **facts,
        "budget": config["budget"],
        "incidents": 0,
        "completed": True,
        "smoke": config["smoke"],
    }
    return rows, result


def _lay_over(config: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _lay_over(config[key], value)
        else:
            config[key] = value


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
