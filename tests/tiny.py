"""A dataset of a few small JPEG files and settings for runs of seconds, shared by the tests of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vit24h.config import Config, load_config

# A ViT of four 8-px patches a side at 32 px; curriculum 8, 16, 24, 32 px; 3 steps an epoch; no clock decides anything.
SETTINGS = [
    "data.synthetic=false",
    "model.image_size=32",
    "model.patch_size=8",
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "data.epoch_multiple=24",
    "optimizer.batch_size=8",
    "optimizer.learning_rate=0.003",
    "optimizer.precision=fp32",
    "runtime.device=cpu",
    "runtime.workers=0",
    "runtime.eval_batch_size=8",
    "runtime.log_every_steps=2",
    "runtime.checkpoint_minutes=1000",
    "budget.hours=null",
]
CURRICULUM = ["curriculum.initial_size=8", "curriculum.size_step=8", "curriculum.budget_fraction_per_stage=0.25"]


def write_images(folder: Path, *, classes: int = 3, train: int = 8, val: int = 4) -> Path:
    """`train/` and `val/` with noisy JPEGs of about 40 pixels, each class brighter than the one before."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            class_folder = folder / split / f"class{label}"
            class_folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(32, 48, 2)
                level = 40 + 170 * label // max(classes - 1, 1)
                pixels = np.clip(rng.normal(level, 30, (height, width, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(class_folder / f"{number}.JPEG")
    return folder


def tiny_config(data: Path, *settings: str, arm: str = "combined", steps: int = 12) -> Config:
    curriculum = CURRICULUM if arm in {"curriculum", "combined"} else []
    return load_config(
        f"paper/{arm}",
        profile="quick",
        overrides=[*tiny_settings(data), f"budget.steps={steps}", *curriculum, *settings],
    )


def tiny_settings(data: Path) -> list[str]:
    return [*SETTINGS, f"data.path={data}"]
