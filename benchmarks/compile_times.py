"""What torch.compile takes for a training step at each size of a curriculum, from an empty and from a full cache.

    python benchmarks/compile_times.py --out DIR [--arm combined] [--profile full] [--set key=value]

The second figure is what a run that is resumed, or the next arm with the same model, waits for. Writes
DIR/compile_times.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from interleaved import wait_for_device
from step import Synthetic, synthetic_step
from vit24h.config import Config, load_config
from vit24h.engine import device as devices
from vit24h.engine import inputs
from vit24h.engine.compiled import CompileClock, Compiled, require_compiler
from vit24h.engine.step import TrainStep
from vit24h.models import build_model, select_depthwise
from vit24h.records import capture_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--arm", default="combined")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--backend", default="inductor", help="aot_eager: builds no kernel; to rehearse")
    options = parser.parse_args()

    config = load_config(f"paper/{options.arm}", profile=options.profile, overrides=options.overrides)
    device = devices.select_device(config.runtime.device)
    devices.allow_tf32(device, config.runtime.tf32)
    if options.backend == "inductor":
        require_compiler(on_gpu=device.type == "cuda")
    precision = devices.select_precision(config, device)
    sizes = config.image_sizes
    environment = capture_environment(gpu=devices.gpu_facts(device), dataset={}, seed=0)
    record = {
        "what": "seconds of compiling a training step",
        "environment": {key: environment[key] for key in ("vit24h", "git", "code", "gpu", "cpu", "python", "packages")},
        "arm": options.arm,
        "profile": options.profile,
        "precision": precision,
        "backend": options.backend,
        "depthwise": config.runtime.depthwise,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        for state in ("empty", "full"):
            torch.compiler.reset()
            rows = record[f"{state}_cache"] = []
            step = _step(config, device, partial(Compiled, shapes=len(sizes), backend=options.backend))
            clock = CompileClock()
            for size in sizes:
                batch = inputs.batch_size(config, size)
                data = Synthetic(
                    torch.randn(batch, 3, size, size, device=device),
                    torch.randn(batch, 1000, device=device).softmax(1),
                )
                step(data, 1e-4)
                wait_for_device()
                rows.append({"image_size": size, "batch_size": batch, "compile_s": clock.take()})
                record[f"{state}_cache_s"] = sum(row["compile_s"] for row in rows)
                (options.out / "compile_times.json").write_text(json.dumps(record, indent=1) + "\n")
                print(f"{state} cache  {size:>4} px  {rows[-1]['compile_s']:7.1f} s", flush=True)
            clock.close()
            print(f"{state} cache  all   {record[f'{state}_cache_s']:8.1f} s", flush=True)


def _step(config: Config, device: torch.device, compiled: Callable[..., Compiled]) -> TrainStep:
    torch.manual_seed(0)
    model = build_model(config.model, 1000)
    select_depthwise(model, config.runtime.depthwise)
    return synthetic_step(config, model.to(device), devices.make_accelerator(config, device), compiled)


if __name__ == "__main__":
    main()
