"""Finding out before hours are spent that the largest batch does not fit into memory. Must not know the run's state.

The trial is a whole step, with a copy of the model and an optimiser, a scaler and random numbers of its own, so that
the run begins as if there had been none.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vit24h.config import Config
from vit24h.data import Batch
from vit24h.engine import inputs
from vit24h.engine.compiled import Compiled, configured
from vit24h.engine.device import synchronize
from vit24h.engine.ema import WeightAverage
from vit24h.engine.optim import build_optimizer
from vit24h.engine.step import TrainStep
from vit24h.errors import UserError

_GIB = 2**30


def try_largest_step(config: Config, model: nn.Module, num_classes: int, accelerator: Accelerator) -> None:
    """A training step with the largest images and one with the most, and on a GPU a batch of evaluation.

    Not compiled: that would be done outside of the time that counts, and the compiled step needs less memory.

    Args:
        model: on the device; unchanged afterwards.
        accelerator: whose device and precision are used; it is told nothing.

    Raises:
        UserError: out of memory; names size and batch, and what to set.
    """
    device, size = accelerator.device, config.model.image_size  # every curriculum ends at it
    sizes = [size]
    if inputs.batch_size(config, smallest := config.image_sizes[0]) > config.optimizer.batch_size:
        sizes.append(smallest)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        for tried in sizes:
            try:
                run, batch = _rehearsal(config, copy.deepcopy(model), num_classes, accelerator, tried)
                run(batch, config.optimizer.learning_rate)
                synchronize(device)
            except (MemoryError, RuntimeError) as error:
                raise_if_out_of_memory(error, config, tried, device)
                raise
            finally:
                run = batch = None  # so that their memory can be given back
                if device.type == "cuda":
                    torch.cuda.empty_cache()
        if device.type == "cuda":
            try:
                _evaluation(model, config.runtime.eval_batch_size, size, accelerator)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"out of memory when evaluating {config.runtime.eval_batch_size} images of {size} px at a time"
                    f"{_memory(device)}: set runtime.eval_batch_size lower"
                ) from error
            finally:
                torch.cuda.empty_cache()


def raise_if_out_of_memory(error: Exception, config: Config, image_size: int, device: torch.device) -> None:
    """Say what was too large, and what to set, where that is what `error` means.

    Raises:
        UserError: it is.
    """
    words = str(error)
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in words:
        return
    batch_size = inputs.batch_size(config, image_size)
    raise UserError(
        f"out of memory at image size {image_size} with batches of {batch_size}{_memory(device)}: set "
        "optimizer.batch_size lower (and optimizer.learning_rate in proportion), end what else uses this memory, or "
        "take a device with more"
    ) from error


def time_steps(
    config: Config, model: nn.Module, num_classes: int, accelerator: Accelerator, image_size: int, *, steps: int = 10
) -> float:
    """Seconds of a training step at `image_size` without any waiting for data; the model is unchanged afterwards.

    Compiled where the configuration says so; what compiling takes is not in it.
    """
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if accelerator.device.type == "cuda" else []):
        compiled = configured(config.runtime, accelerator, shapes=1)
        run, batch = _rehearsal(config, copy.deepcopy(model), num_classes, accelerator, image_size, compiled)
        for _ in range(3):  # the first ones choose kernels
            run(batch, config.optimizer.learning_rate)
        synchronize(accelerator.device)
        begin = time.perf_counter()
        for _ in range(steps):
            run(batch, config.optimizer.learning_rate)
        synchronize(accelerator.device)
        return (time.perf_counter() - begin) / steps


def rehearsal_step(
    config: Config, model: nn.Module, num_classes: int, accelerator: Accelerator, *, shapes: int
) -> TrainStep:
    """A training step on `model`, which it changes, with an optimiser, an average and random numbers of its own.

    Args:
        shapes: of batches that it will see; it is compiled for each where the configuration says so.
    """
    compiled = configured(config.runtime, accelerator, shapes=shapes)
    return _rehearsal(config, model, num_classes, accelerator, config.model.patch_size, compiled)[0]


def _rehearsal(
    config: Config,
    model: nn.Module,
    num_classes: int,
    outer: Accelerator,
    image_size: int,
    compiled: Callable[[Callable[..., Any]], Compiled] | None = None,
) -> tuple[TrainStep, Batch]:
    """A step on `model`, which it changes, and a batch of black images for it."""
    accelerator = Accelerator(cpu=outer.device.type == "cpu", mixed_precision=outer.mixed_precision)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    average = WeightAverage(accelerator.unwrap_model(model), config.optimizer.ema_decay)
    augment = inputs.device_augment(config, num_classes)
    step = TrainStep(
        accelerator,
        model,
        optimizer,
        augment,
        average,
        label_smoothing=config.augmentation.label_smoothing,
        compiled=compiled,
    )
    count = inputs.batch_size(config, image_size, outer.num_processes) // outer.num_processes
    batch = Batch(
        images=torch.zeros((count, image_size, image_size, 3), dtype=torch.uint8).permute(0, 3, 1, 2),
        labels=torch.zeros(count, dtype=torch.int64),
        erasing_boxes=torch.zeros((count, 4), dtype=torch.int32),
        epoch=0,
        position=0,
        image_size=image_size,
        last_of_epoch=False,
        incidents=[],
    )
    model.train()
    return step, batch.to(accelerator.device)


@torch.inference_mode()
def _evaluation(model: nn.Module, batch_size: int, size: int, accelerator: Accelerator) -> None:
    was_training = model.training
    model.eval()
    with accelerator.autocast():
        model(torch.zeros((batch_size, 3, size, size), device=accelerator.device))
    model.train(was_training)
    torch.cuda.synchronize()


def _memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f" ({total / _GIB:.1f} GiB on {torch.cuda.get_device_name(device)}, {free / _GIB:.1f} GiB free)"
