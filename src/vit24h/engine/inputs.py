"""From a configuration to its data: dataset, loaders, augmentation. Where `engine` meets `data`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vit24h import paths, schedules
from vit24h.config import Config, DataConfig
from vit24h.data import (
    BatchPlan,
    Dataset,
    DeviceAugment,
    EpochOrder,
    EvalLoader,
    EvalTransform,
    TrainLoader,
    TrainTransform,
    draw_images,
    open_dataset,
)
from vit24h.engine.device import select_workers
from vit24h.errors import UserError


def open_configured_dataset(config: DataConfig) -> Dataset:
    """The dataset that a configuration names; drawn first where it is to be drawn.

    Raises:
        UserError: none is named, or what is named is not one.
    """
    if config.synthetic:
        return open_dataset(draw_images(paths.image_cache() / "drawn-images"))
    if config.path is None:
        raise UserError("no dataset: give the folder that has train/ and val/ with --data DIR (or --set data.path=DIR)")
    return open_dataset(config.path)


def dataset_facts(config: DataConfig, dataset: Dataset) -> dict[str, Any]:
    """What a record says of its dataset; no path but the folder's name, because records are published."""
    return {
        "name": "drawn images" if config.synthetic else Path(config.path).resolve().name,
        "fingerprint": dataset.fingerprint,
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "classes": len(dataset.classes),
        "packing": dataset.packing,
    }


def epoch_order(config: Config, dataset: Dataset) -> EpochOrder:
    """The order of training samples.

    Raises:
        UserError: an epoch would hold no batch.
    """
    data = config.data
    order = EpochOrder(len(dataset.train), config.seed, data.repeated_augmentation, data.epoch_multiple)
    if order.samples_per_epoch < config.optimizer.batch_size:
        raise UserError(
            f"optimizer.batch_size {config.optimizer.batch_size}: more than the {order.samples_per_epoch} samples of "
            f"an epoch of this dataset: set it to at most {order.samples_per_epoch}"
        )
    smallest_size = config.image_sizes[0]
    if order.samples_per_epoch < (largest := batch_size(config, smallest_size)):
        raise UserError(
            f"optimizer.constant_tokens: makes batches of {largest} images of {smallest_size} px, more than the "
            f"{order.samples_per_epoch} samples of an epoch of this dataset: set it to false, or "
            "optimizer.batch_size lower"
        )
    return order


def batch_size(config: Config, image_size: int, processes: int = 1) -> int:
    """Images in a batch at `image_size`, over all processes."""
    optimizer, model = config.optimizer, config.model
    if not optimizer.constant_tokens:
        return optimizer.batch_size
    tokens, full_tokens = (1 + (size // model.patch_size) ** 2 for size in (image_size, model.image_size))
    return schedules.batch_size_of_tokens(
        optimizer.batch_size, full_tokens=full_tokens, tokens=tokens, multiple=math.lcm(8, processes)
    )


def train_transform(config: Config) -> TrainTransform:
    """What a configuration does to a training image in the loader's processes."""
    return TrainTransform(config.augmentation, config.data.mean, scaled_decoding=config.data.scaled_decoding)


def train_loader(
    config: Config,
    dataset: Dataset,
    order: EpochOrder,
    plan: Callable[[int, int], BatchPlan],
    *,
    device: torch.device,
    start_epoch: int,
    start_position: int,
    rank: int = 0,
    world_size: int = 1,
) -> TrainLoader:
    return TrainLoader(
        dataset.train,
        order,
        train_transform(config),
        seed=config.seed,
        workers=select_workers(config.runtime.workers, device),
        prefetch_batches=config.runtime.prefetch_batches,
        pin_memory=device.type == "cuda",
        plan=plan,
        start_epoch=start_epoch,
        start_position=start_position,
        rank=rank,
        world_size=world_size,
    )


def eval_loader(
    config: Config, dataset: Dataset, *, device: torch.device, rank: int = 0, world_size: int = 1
) -> EvalLoader:
    return EvalLoader(
        dataset.val,
        EvalTransform(config.model.image_size, config.data.eval_resize_ratio),
        batch_size=config.runtime.eval_batch_size,
        workers=select_workers(config.runtime.workers, device),
        pin_memory=device.type == "cuda",
        rank=rank,
        world_size=world_size,
    )


def device_augment(config: Config, num_classes: int) -> DeviceAugment:
    return DeviceAugment(config.augmentation, config.data.mean, config.data.std, num_classes, config.seed)
