"""Loader and step together against the slower of the two alone, at each image size: does either wait for the other?

    python benchmarks/end_to_end.py --out DIR --data IMAGES [--arm combined] [--profile full] [--set key=value]

The project's own loader, step and prefetching, as a run has them. `share` is the images a second of both together over
those of the slower one alone: 1 is perfect. Writes DIR/end_to_end.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from interleaved import wait_for_device
from vit24h.config import Config, load_config
from vit24h.data import Batch, BatchPlan, Dataset, DeviceCopy, TrainLoader
from vit24h.engine import device as devices
from vit24h.engine import inputs
from vit24h.engine.compiled import configured
from vit24h.engine.ema import WeightAverage
from vit24h.engine.optim import build_optimizer
from vit24h.engine.step import TrainStep
from vit24h.models import build_model, select_depthwise
from vit24h.records import capture_environment


def build_step(config: Config, classes: int, accelerator: Accelerator) -> Callable[[Batch], object]:
    model = build_model(config.model, classes)
    select_depthwise(model, config.runtime.depthwise)
    model.to(accelerator.device).train()
    average = WeightAverage(model, config.optimizer.ema_decay)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    step = TrainStep(
        accelerator,
        model,
        optimizer,
        inputs.device_augment(config, classes),
        average,
        label_smoothing=config.augmentation.label_smoothing,
        compiled=configured(config.runtime, accelerator, shapes=len(config.image_sizes)),
    )
    to_device = DeviceCopy(accelerator.device)
    return lambda batch: step(to_device(batch), 1e-4)


def rate(call: Callable[[], int], seconds: float) -> float:
    """Images a second: calls, each of which says how many images it was, for about so long."""
    images = 0
    wait_for_device()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        images += call()
    wait_for_device()
    return images / (time.perf_counter() - begin)


def measure(config: Config, dataset: Dataset, step: Callable, device: torch.device, size: int, seconds: float) -> dict:
    """One row: loader alone, step alone, both, in turns, the better of two for each."""
    batch_size = inputs.batch_size(config, size)
    loader: TrainLoader = inputs.train_loader(
        config,
        dataset,
        inputs.epoch_order(config, dataset),
        lambda _epoch, _sample: BatchPlan(image_size=size, batch_size=batch_size),
        device=device,
        start_epoch=0,
        start_position=0,
    )

    def load() -> int:
        return len(next(loader).labels)

    def train() -> int:
        step(held)
        return len(held.labels)

    def both() -> int:
        nonlocal waited_s, spent_s
        begin = time.perf_counter()
        batch = next(loader)
        waited_s += time.perf_counter() - begin
        step(batch)
        spent_s += time.perf_counter() - begin
        return len(batch.labels)

    waited_s, spent_s = 0.0, 0.0
    try:
        held = next(loader)
        for _ in range(3):
            train()
        wait_for_device()
        _drain(loader, config, device)
        found: dict[str, list[float]] = {"loader": [], "step": [], "both": []}
        for _ in range(2):
            for name, call in (("loader", load), ("step", train), ("both", both)):
                if name == "both":
                    _drain(loader, config, device)  # what the workers had got ready while the step ran alone
                found[name].append(rate(call, seconds))
    finally:
        loader.close()
    loader_rate, step_rate, together = (max(found[name]) for name in ("loader", "step", "both"))
    return {
        "image_size": size,
        "batch_size": batch_size,
        "loader_images_per_s": loader_rate,
        "step_images_per_s": step_rate,
        "images_per_s": together,
        "share": together / min(loader_rate, step_rate),
        "binds": "loader" if loader_rate < step_rate else "step",
        "data_wait_share": waited_s / spent_s,
        "rounds": found,
    }


def _drain(loader: TrainLoader, config: Config, device: torch.device) -> None:
    workers = devices.select_workers(config.runtime.workers, device)
    for _ in range(workers * config.runtime.prefetch_batches):
        next(loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; without it, images are drawn")
    parser.add_argument("--arm", default="combined")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--sizes", help="pixels; without it, the curriculum's")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of six measurements at a size")
    parser.add_argument("--minutes", type=float, default=3.0, help="begin no further size after this long")
    parser.add_argument("--note", default="", help="a word for the record, such as what else the machine did")
    options = parser.parse_args()

    begin = time.monotonic()
    where = f"data.path={options.data.resolve()}" if options.data else "data.synthetic=true"
    config = load_config(f"paper/{options.arm}", profile=options.profile, overrides=[where, *options.overrides])
    device = devices.select_device(config.runtime.device)
    devices.limit_threads(device)
    devices.allow_tf32(device, config.runtime.tf32)
    precision = devices.select_precision(config, device)
    accelerator = devices.make_accelerator(config, device)
    dataset = inputs.open_configured_dataset(config.data)
    facts = inputs.dataset_facts(config.data, dataset)
    step = build_step(config, facts["classes"], accelerator)
    environment = capture_environment(gpu=devices.gpu_facts(device), dataset=facts, seed=config.seed)
    record = {
        "what": "loader and step together",
        "environment": {key: value for key, value in environment.items() if key not in ("system", "image", "seed")},
        "arm": options.arm,
        "profile": options.profile,
        "precision": precision,
        "workers": devices.select_workers(config.runtime.workers, device),
        "note": options.note,
        "rows": [],
        "left_out": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    # The largest first: there the step binds most, and it is where a run spends most of its time.
    sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else config.image_sizes[::-1]
    for size in sizes:
        if time.monotonic() - begin > 60 * options.minutes:
            record["left_out"].append({"image_size": size, "why": "no time left"})
            continue
        row = measure(config, dataset, step, device, size, options.seconds)
        record["rows"].append(row)
        (options.out / "end_to_end.json").write_text(json.dumps(record, indent=1) + "\n")
        print(
            f"{size:>4} px  batch {row['batch_size']:>5}  loader {row['loader_images_per_s']:>8.0f}  step "
            f"{row['step_images_per_s']:>8.0f}  both {row['images_per_s']:>8.0f} images/s  "
            f"{100 * row['share']:.1f} % of the slower, the {row['binds']}; "
            f"waiting {100 * row['data_wait_share']:.0f} %",
            flush=True,
        )
    (options.out / "end_to_end.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
