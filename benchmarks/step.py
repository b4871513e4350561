"""How fast a training step is, beside what else there is: images a second, FLOP/s, memory, and ratios.

    python benchmarks/step.py --out DIR             a GPU: 224, 64, 32 px, then the other sizes, for --minutes
    python benchmarks/step.py --out DIR --small     a CPU: 224 px, batch 8, fp32, one core, ours beside timm's

At each image size and batch, in turns (benchmarks/interleaved.py): the three models of ours, as written and compiled;
timm's `deit_small_patch16_224` in the same step, as written and compiled; and timm's model in a loop as DeiT's, which
reads the loss and waits for the GPU after every step. Locality's convolution in its three ways. A matrix product takes
its turn among them: a share of the peak is a share of what it reached in the same round. Images and targets lie on the
device already, so this is the step alone; benchmarks/end_to_end.py has the loader. Writes DIR/step.json,
DIR/step.png and DIR/step.pdf.

Needs timm beside the locked packages (it is in tests/requirements.lock).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from interleaved import Timing, median_ratio, time_in_turns, wait_for_device
from vit24h.config import Config, load_config
from vit24h.engine.compiled import CompileClock, Compiled
from vit24h.engine.device import allow_tf32, gpu_facts
from vit24h.engine.ema import WeightAverage
from vit24h.engine.optim import build_optimizer
from vit24h.engine.step import TrainStep
from vit24h.models import build_model, count_macs, select_depthwise
from vit24h.records import capture_environment

CLASSES = 1000
ALL_SIZES = "224,64,32,128,192,160,96"
DEIT_LOOP = "timm, DeiT's loop"
PRODUCT = "matrix product"


@dataclass(frozen=True)
class Contender:
    """A way to do a training step."""

    name: str
    arm: str  # of configs/paper; what is compared with what is within one arm, timm's beside the baseline
    compiled: bool = False
    timm: bool = False
    depthwise: str = "conv"
    cuda_graphs: bool = False


GPU = (
    Contender("baseline", "baseline"),
    Contender("baseline, compiled", "baseline", compiled=True),
    Contender("baseline, compiled, CUDA graphs", "baseline", compiled=True, cuda_graphs=True),
    Contender("timm", "baseline", timm=True),
    Contender("timm, compiled", "baseline", timm=True, compiled=True),
    Contender(DEIT_LOOP, "baseline", timm=True),
    Contender("locality", "locality"),
    Contender("locality, compiled", "locality", compiled=True),
    Contender("locality, compiled, shifted", "locality", compiled=True, depthwise="shifted"),
    Contender("locality, compiled, triton", "locality", compiled=True, depthwise="triton"),
    Contender("LocalViT-S", "localvit"),
    Contender("LocalViT-S, compiled", "localvit", compiled=True),
)
SMALL = (Contender("baseline", "baseline"), Contender("timm", "baseline", timm=True))
LOCALITY_SMALL = (Contender("locality", "locality"), Contender("locality, shifted", "locality", depthwise="shifted"))


@dataclass
class Synthetic:
    """What a step is given: images and targets that lie on the device."""

    images: Tensor
    targets: Tensor


def synthetic_step(
    config: Config, model: nn.Module, accelerator: Accelerator, compiled: Callable[..., Compiled] | None
) -> TrainStep:
    """A training step of `model`, which is on the device, on `Synthetic` data."""
    average = WeightAverage(model, config.optimizer.ema_decay)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, config.optimizer))
    model.train()
    return TrainStep(
        accelerator,
        model,
        optimizer,
        lambda synthetic: (synthetic.images, synthetic.targets),
        average,
        label_smoothing=config.augmentation.label_smoothing,
        compiled=compiled,
    )


@dataclass(frozen=True)
class MatrixProduct:
    """Of two square matrices of random numbers: what a share of the peak is a share of."""

    one: Tensor
    other: Tensor

    def __call__(self) -> Tensor:
        return self.one @ self.other

    @property
    def flops(self) -> int:
        return 2 * len(self.one) ** 3

    @property
    def description(self) -> str:
        side, dtype = len(self.one), str(self.one.dtype).removeprefix("torch.")
        return f"{side} × {side} times {side} × {side}, {dtype}"


def share_of_peak(step: Timing, step_flops: float, product: Timing, product_flops: float) -> float:
    """FLOP/s of a step ÷ those of the product in the same round, the median over the rounds.

    So neither a moment in which the machine was busy nor a clock that falls as the device gets warm makes a share.
    """
    return step_flops / product_flops * median_ratio(step, product)


class Bench:
    def __init__(self, device: torch.device, precision: str):
        self.device, self.precision = device, precision
        self.clock = CompileClock()

    def build(self, contender: Contender, size: int, batch: int) -> tuple[Callable[[], object], dict[str, float]]:
        """A step that can be called, warm, and what making it so took: seconds of compiling, bytes of memory."""
        self._free()
        before = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
        torch.manual_seed(0)
        config = load_config(f"paper/{contender.arm}")
        step = self._deit_loop if contender.name == DEIT_LOOP else self._step
        data = Synthetic(
            torch.randn(batch, 3, size, size, device=self.device),
            torch.randn(batch, CLASSES, device=self.device).softmax(1),
        )
        call = step(contender, config, size, data)
        self.clock.take()
        for _ in range(3):
            call()
        wait_for_device()
        facts = {"compile_s": round(self.clock.take(), 2)}
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            call()
            wait_for_device()
            facts["memory_gib"] = round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)
        return call, facts

    def best_batch(self, size: int, smallest: int) -> int:
        """The batch with the most images a second, as written: doubled until a doubling gains less than 2 %."""
        best, best_rate, batch = smallest, 0.0, smallest
        while True:
            try:
                call, _ = self.build(GPU[0], size, batch)
                timing = time_in_turns({"step": call}, rounds=3, round_s=0.3)["step"]
            except torch.OutOfMemoryError:
                break
            finally:
                call = None
            rate = batch / timing.median_s
            if rate < 1.02 * best_rate:
                break
            best, best_rate, batch = batch, rate, 2 * batch
        self._free()
        return best

    def matrix_product(self) -> MatrixProduct:
        on_gpu = self.device.type == "cuda"
        side, dtype = (8192, torch.bfloat16) if on_gpu else (2048, torch.float32)
        one, other = (torch.randn(side, side, dtype=dtype, device=self.device) for _ in range(2))
        product = MatrixProduct(one, other)
        for _ in range(3):  # the first ones choose kernels
            product()
        return product

    def _step(self, contender: Contender, config: Config, size: int, data: Synthetic) -> Callable[[], Tensor]:
        model = _model(contender, config, size).to(self.device)
        accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision=self.precision)
        compiled = partial(Compiled, shapes=1, cuda_graphs=contender.cuda_graphs) if contender.compiled else None
        step = synthetic_step(config, model, accelerator, compiled)
        return lambda: step(data, 1e-4)

    def _deit_loop(self, contender: Contender, config: Config, size: int, data: Synthetic) -> Callable[[], float]:
        """A step as the authors ran it: fp16 with a scaler on a GPU, plain AdamW, an average kept weight by weight."""
        from timm.utils import ModelEma

        model = _model(contender, config, size).to(self.device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
        average = ModelEma(model, decay=config.optimizer.ema_decay)
        on_gpu = self.device.type == "cuda"
        scaler = torch.amp.GradScaler(self.device.type, enabled=on_gpu)

        def step() -> float:
            with torch.autocast(self.device.type, dtype=torch.float16, enabled=on_gpu):
                logits = model(data.images)
                loss = torch.sum(-data.targets * F.log_softmax(logits, dim=-1), dim=-1).mean()
            value = loss.item()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            wait_for_device()
            average.update(model)
            return value

        return step

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _model(contender: Contender, config: Config, size: int) -> nn.Module:
    if contender.timm:
        import timm

        return timm.create_model("deit_small_patch16_224", img_size=size, drop_path_rate=config.model.drop_path)
    model = build_model(config.model, CLASSES)
    select_depthwise(model, contender.depthwise)
    return model


def measure(
    bench: Bench, contenders: tuple[Contender, ...], size: int, batch: int, *, rounds: int, round_s: float
) -> tuple[list[dict], dict]:
    """One row for each contender, at this size and batch, in turns with the others; and what the matrix product did."""
    calls, facts, failed = {}, {}, {}
    for contender in contenders:
        try:
            calls[contender.name], facts[contender.name] = bench.build(contender, size, batch)
        except torch.OutOfMemoryError:
            failed[contender.name] = "out of memory"
        except Exception as error:  # one way that does not work must not take the others' figures along
            failed[contender.name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    product = bench.matrix_product()
    timings = time_in_turns({**calls, PRODUCT: product}, rounds=rounds, round_s=round_s)
    products = timings.pop(PRODUCT)
    rows = []
    for contender in contenders:
        row = {"contender": contender.name, "arm": contender.arm, "image_size": size, "batch_size": batch}
        if contender.name in failed:
            rows.append({**row, "failed": failed[contender.name]})
            continue
        timing = timings[contender.name]
        macs = count_macs(build_model(load_config(f"paper/{contender.arm}").model, CLASSES), size)
        flops = 6 * macs * batch  # 2 for multiply and add, 3 for forward and the two products of backward
        rows.append(
            {
                **row,
                "step_ms": 1e3 * timing.median_s,
                "spread": timing.spread,
                "images_per_s": batch / timing.median_s,
                "model_flops_per_s": flops / timing.median_s,
                "share_of_peak": share_of_peak(timing, flops, products, product.flops),
                **facts[contender.name],
                "times_as_fast_as": {
                    other: median_ratio(timing, theirs) for other, theirs in timings.items() if other != contender.name
                },
            }
        )
    peak = {"image_size": size, "batch_size": batch, "flops_per_s": [product.flops / s for s in products.rounds]}
    return rows, peak


def plan_of(sizes: list[int], batches: list[int | None], contenders: tuple[Contender, ...]) -> Iterator[tuple]:
    """What is measured together, the most wanted first; a batch of None is the best one."""
    for some in (sizes[:3], sizes[3:]):
        for batch in batches:
            for size in some:
                for arm in (("baseline", "locality"), ("localvit",)):
                    if part := tuple(one for one in contenders if one.arm in arm):
                        yield size, batch, part


def draw(record: dict, folder: Path) -> None:
    """Images a second over image size, for each contender, at the batch that most were measured at."""
    from vit24h.report.style import INK, STYLE, mpl, new_figure

    rows = [row for row in record["rows"] if "failed" not in row]
    batches = [row["batch_size"] for row in rows]
    batch = statistics.mode(batches)
    gpu = record["environment"]["gpu"]
    where = gpu["name"] if gpu else f"{record['environment']['cpu']['model']}, {record['threads']} thread"
    footer = [(f"{where}, {record['precision']}, batch {batch}, medians of {record['rounds']} rounds in turns.", INK)]
    with mpl.rc_context(STYLE):
        figure = new_figure(0.5 + 0.22 * len({(row["contender"], row["image_size"]) for row in rows}), footer)
        axes = figure.add_subplot()
        shown = sorted((r for r in rows if r["batch_size"] == batch), key=lambda r: (r["image_size"], r["contender"]))
        names = [f"{row['image_size']} px  {row['contender']}" for row in shown][::-1]
        values = [row["images_per_s"] for row in shown][::-1]
        bars = axes.barh(names, values, color=["#4C72B0" if "timm" not in name else "#B0B0B0" for name in names])
        axes.bar_label(bars, fmt="{:,.3g}", padding=2, fontsize=6)
        axes.set_xlabel("images a second")
        axes.grid(axis="y", visible=False)
        figure.save(folder, "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--small", action="store_true", help="for a CPU: 224 px, batch 8, fp32, baseline beside timm")
    parser.add_argument("--sizes", help="pixels, in the order to measure them; default: all")
    parser.add_argument("--batch", type=int, help="images; default: 64, and 8 if --small")
    parser.add_argument("--minutes", type=float, default=5.0, help="begin nothing more after this long")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="a word for the record, such as what else the machine did")
    options = parser.parse_args()

    begin_s = time.monotonic()
    on_gpu = torch.cuda.is_available() and not options.small
    device = torch.device("cuda" if on_gpu else "cpu")
    if not on_gpu:
        torch.set_num_threads(1)
    allow_tf32(device, allowed=True)
    bench = Bench(device, "bf16" if on_gpu else "no")
    sizes = [int(size) for size in (options.sizes or ("224" if options.small else ALL_SIZES)).split(",")]
    options.batch = options.batch or (8 if options.small else 64)
    if options.small:
        parts, round_s = [(size, options.batch, part) for size in sizes for part in (SMALL, LOCALITY_SMALL)], 0.0
    else:
        parts, round_s = list(plan_of(sizes, [options.batch, None], GPU if on_gpu else SMALL)), 0.3

    record = {
        "what": "training step, synthetic data on the device",
        "environment": _environment(device),
        "precision": "bf16" if on_gpu else "fp32",
        "threads": torch.get_num_threads(),
        "rounds": options.rounds,
        "note": options.note,
        "share_of_peak": "model FLOP/s of a step / those of the matrix product in the same round, median over rounds",
        "matrix_peak": {"product": bench.matrix_product().description, "rounds": []},
        "rows": [],
        "left_out": [],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        _measure_all(bench, parts, record, options, begin_s, round_s)
    finally:  # what there is stays, however it ends
        (options.out / "step.json").write_text(json.dumps(record, indent=1) + "\n")
        if any("failed" not in row for row in record["rows"]):
            draw(record, options.out)


def _measure_all(
    bench: Bench, parts: list[tuple], record: dict, options: argparse.Namespace, begin_s: float, round_s: float
) -> None:
    best: dict[int, int] = {}
    for size, wanted, contenders in parts:
        if time.monotonic() - begin_s > 60 * options.minutes:
            record["left_out"].append({"image_size": size, "batch_size": wanted or "best", "why": "no time left"})
            continue
        if wanted is None and size not in best:
            best[size] = bench.best_batch(size, options.batch)
        rows, peak = measure(bench, contenders, size, wanted or best[size], rounds=options.rounds, round_s=round_s)
        for row in rows:
            print(_line(row), flush=True)
        record["rows"] += rows
        record["matrix_peak"]["rounds"].append(peak)


def _environment(device: torch.device) -> dict:
    """As in a run's record, without a dataset and a seed, and without the machine's kernel."""
    environment = capture_environment(gpu=gpu_facts(device), dataset={}, seed=0)
    environment["packages"]["timm"] = metadata.version("timm")
    return {key: environment[key] for key in ("vit24h", "git", "code", "gpu", "cpu", "python", "packages")}


def _line(row: dict) -> str:
    name = f"{row['image_size']:>4} px  batch {row['batch_size']:>5}  {row['contender']:<32}"
    if "failed" in row:
        return f"{name} failed: {row['failed']}"
    ratios = row["times_as_fast_as"]
    told = f"  {ratios['timm']:.2f}× timm" if "timm" in ratios else ""
    return (
        f"{name}{row['step_ms']:>9.2f} ms{row['images_per_s']:>10.0f} images/s"
        f"{100 * row['share_of_peak']:>6.1f} % of peak{row['compile_s']:>7.1f} s compiling{told}"
    )


if __name__ == "__main__":
    main()
