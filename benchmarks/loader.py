"""Images a second through the training recipe on the CPU: this project's loader beside what the authors ran.

    python benchmarks/loader.py IMAGES               a folder or a tar of image files, such as 240 of ImageNet's
    python benchmarks/loader.py IMAGES --rounds 2 --sizes 64,224 --out trial

Two tables. The *recipe*: read, decode, crop, flip, RandAugment, random erasing, normalisation, to a float batch, each
image in three crops one after another; on one core without a process beside, and on all cores with a worker each.
*Crop and decode alone*: crop and flip to a uint8 batch, each image once, on one core, from equal stored images.

And how far crops decoded at a fraction of the size are from crops of the whole picture resampled by Pillow, which is
what the paper's code trained on: PSNR over three crops of every image.

All files are read before every measurement, so that nothing waits for a disk; the checksums that a process verifies
when it reads an image of a pack for the first time are not in the figures. Every round measures every loader at every
size once, so that what else the machine does hits all of them; a figure is the median over the rounds, a ratio the
median of the rounds' ratios. timm and FFCV are no dependencies of the project: timm comes with the tests' packages;
FFCV is measured where it is installed, and said to be missing where it is not.

Writes loader.json, loader.md, loader.png and loader.pdf.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from page_cache import read_all
from vit24h.config import load_config
from vit24h.data import BatchPlan, DeviceAugment, EpochOrder, ImageSource, TrainLoader, TrainTransform, open_dataset
from vit24h.data.decode import load_image
from vit24h.records.environment import capture_environment
from vit24h.report import style

SIZES = (32, 64, 96, 128, 160, 192, 224)
BATCH_SIZE = 64
REPEATS = 3
PAPER = load_config("base")
REFERENCE = "DeiT-style (timm)"

LOOKS = {
    REFERENCE: ("#222222", "o"),
    "torchvision decode_jpeg + v2": ("#8A8A8A", "s"),
    "simplejpeg, then Pillow": ("#8A8A8A", "s"),
    "ours, folder": ("#0072B2", "D"),
    "ours, folder, full decoding": ("#56B4E9", "^"),
    "ours, pack 256 px q90": ("#D55E00", "v"),
    "ours, JPEG pack": ("#D55E00", "v"),
    "ours, pack 256 px raw": ("#009E73", "P"),
    "ours, raw pack": ("#009E73", "P"),
    "FFCV, JPEG": ("#E69F00", ">"),
    "FFCV, raw": ("#CC79A7", "<"),
}

Batches = Iterator[Any]
Loader = Callable[[int, int], Batches]
"""(image size, worker processes) -> endless batches."""


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = as_image_folder(options.images, Path(scratch) / "images")
        packs = {
            "jpeg": packed(folder, Path(scratch) / "jpeg", "--short-side", "256", "--quality", "90"),
            "raw": packed(folder, Path(scratch) / "raw", "--short-side", "256", "--raw"),
        }
        recipe = {
            REFERENCE: deit_style(folder),
            "torchvision decode_jpeg + v2": torchvision_v2(folder),
            "ours, folder": ours(folder),
            "ours, folder, full decoding": ours(folder, scaled_decoding=False),
            "ours, pack 256 px q90": ours(packs["jpeg"]),
            "ours, pack 256 px raw": ours(packs["raw"]),
        }
        results = []
        for cores in options.cores:
            results += measure("recipe", recipe, cores, options, Path(scratch))
        equal = equal_images(packs["raw"], Path(scratch) / "equal")
        equal_pack = packed(equal, Path(scratch) / "equal-pack", "--short-side", "256", "--quality", "90")
        alone = {
            "simplejpeg, then Pillow": simplejpeg_alone(equal),
            "ours, JPEG pack": ours_alone(equal_pack),
            "ours, raw pack": ours_alone(packs["raw"]),
            **ffcv_alone(equal, Path(scratch)),
        }
        results += measure("crop and decode", alone, 1, options, Path(scratch))
        write(options, folder, results, [fidelity(folder, size) for size in options.sizes])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder or tar of image files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=1.0, help="that each is measured at a time (default: 1)")
    parser.add_argument(
        "--cores", type=lambda text: [int(count) for count in text.split(",")], default=[1, os.cpu_count() or 1]
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records")
    return parser.parse_args()


# -- the images --------------------------------------------------------------------------------------------------------


def as_image_folder(images: Path, folder: Path) -> Path:
    """train/ and val/ with one class of all images."""
    (folder / "val").mkdir(parents=True)
    target = folder / "train" / "all"
    target.mkdir(parents=True)
    if images.is_dir():
        for file in sorted(images.iterdir()):
            (target / file.name).symlink_to(file.resolve())
    else:
        with tarfile.open(images) as archive:
            for member in archive.getmembers():
                if member.isfile():
                    (target / Path(member.name).name).write_bytes(archive.extractfile(member).read())
    (folder / "val" / "all").mkdir()
    first = sorted(target.iterdir())[0]
    (folder / "val" / "all" / first.name).write_bytes(first.read_bytes())
    return folder


@functools.cache
def train_images(path: Path) -> ImageSource:
    """Every image read once, which verifies its checksum."""
    images = open_dataset(path).train
    for index in range(len(images)):
        images.read(index)
    return images


def packed(folder: Path, target: Path, *options: str) -> Path:
    subprocess.run(
        [sys.executable, "-m", "vit24h", "pack", str(folder), str(target), *options],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return target


def equal_images(raw_pack: Path, folder: Path) -> Path:
    """The raw pack's pictures as JPEG files of quality 90, 4:2:0: what FFCV stores, and a pack keeps as it is."""
    images = train_images(raw_pack)
    (folder / "train" / "all").mkdir(parents=True)
    (folder / "val" / "all").mkdir(parents=True)
    for index in range(len(images)):
        picture = Image.fromarray(np.array(images.read(index)))
        picture.save(folder / "train" / "all" / f"{index:06d}.jpg", quality=90, subsampling="4:2:0")
    picture.save(folder / "val" / "all" / "last.jpg", quality=90, subsampling="4:2:0")
    return folder


# -- the whole recipe --------------------------------------------------------------------------------------------------


def ours(path: Path, *, scaled_decoding: bool = True) -> Loader:
    """The project's loader, and what it leaves to the device: erasing and normalisation. No mixing, as in all."""
    recipe = dataclasses.replace(PAPER.augmentation, mixup_alpha=0.0, cutmix_alpha=0.0)
    images = train_images(path)

    def batches(size: int, workers: int) -> Batches:
        transform = TrainTransform(recipe, PAPER.data.mean, scaled_decoding=scaled_decoding)
        finish = DeviceAugment(recipe, PAPER.data.mean, PAPER.data.std, 1, seed=0)
        with train_loader(images, transform, size, workers, REPEATS) as loader:
            for batch in loader:
                yield finish(batch)[0]

    return batches


def train_loader(images: ImageSource, transform: TrainTransform, size: int, workers: int, repeats: int) -> TrainLoader:
    return TrainLoader(
        images,
        EpochOrder(len(images), seed=0, repeats=repeats, epoch_multiple=1),
        transform,
        seed=0,
        workers=workers,
        prefetch_batches=4,
        pin_memory=False,
        plan=lambda _epoch, _position: BatchPlan(size, BATCH_SIZE),
    )


def deit_style(folder: Path) -> Loader:
    """What the authors ran: ImageFolder, Pillow, timm's transforms, torch's DataLoader."""
    import timm.data.auto_augment
    from timm.data import create_transform
    from torchvision.datasets import ImageFolder

    # Pillow 12 and newer refuse what older ones drew black: no bit kept.
    posterize = timm.data.auto_augment.posterize
    timm.data.auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **more: (
        posterize(image, bits, **more) if bits > 0 else Image.new("RGB", image.size)
    )

    def batches(size: int, workers: int) -> Batches:
        transform = create_transform(
            size, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic",
            re_prob=0.25, re_mode="pixel", re_count=1,
        )  # fmt: skip
        return batches_of_torch(ImageFolder(str(folder / "train"), transform), workers)

    return batches


def torchvision_v2(folder: Path) -> Loader:
    """torchvision alone, on tensors: decode_jpeg and transforms v2, its own RandAugment of like strength, bilinear."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import InterpolationMode, v2

    def load(path: str) -> torch.Tensor:
        return decode_image(read_file(path), mode=ImageReadMode.RGB)

    def batches(size: int, workers: int) -> Batches:
        transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.RandAugment(2, 28, interpolation=InterpolationMode.BILINEAR)], p=0.5),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(PAPER.data.mean, PAPER.data.std),
                v2.RandomErasing(0.25),
            ]
        )
        return batches_of_torch(ImageFolder(str(folder / "train"), transform, loader=load), workers)

    return batches


def batches_of_torch(dataset: torch.utils.data.Dataset, workers: int) -> Batches:
    order = repeated_order(len(dataset))
    loader = torch.utils.data.DataLoader(
        dataset, BATCH_SIZE, sampler=order, num_workers=workers, drop_last=True,
        **({"prefetch_factor": 4} if workers else {}),
    )  # fmt: skip
    for images, _labels in loader:
        yield images


class repeated_order:  # noqa: N801 - an iterable that a DataLoader can go through as often as it likes
    """Endless: a new permutation an epoch, each image three times in a row."""

    def __init__(self, images: int):
        self.images = images

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(0)
        while True:
            for index in rng.sample(range(self.images), self.images // REPEATS):
                yield from itertools.repeat(index, REPEATS)


# -- crop and decode alone ---------------------------------------------------------------------------------------------


def ours_alone(path: Path) -> Loader:
    bare = dataclasses.replace(PAPER.augmentation, randaugment_ops=0, erasing_probability=0.0)
    images = train_images(path)

    def batches(size: int, workers: int) -> Batches:
        transform = TrainTransform(bare, PAPER.data.mean, scaled_decoding=True)
        with train_loader(images, transform, size, workers, repeats=1) as loader:
            for batch in loader:
                yield batch.images

    return batches


def simplejpeg_alone(folder: Path) -> Loader:
    """A few lines that decode at the scale the crop allows, as one would write them by hand."""
    import simplejpeg

    from vit24h.data.augment import draw_crop

    files = [file.read_bytes() for file in sorted((folder / "train" / "all").iterdir())]

    def batches(size: int, workers: int) -> Batches:
        assert workers == 0
        rng = np.random.default_rng(0)
        while True:
            batch = np.empty((BATCH_SIZE, size, size, 3), np.uint8)
            for sample in range(BATCH_SIZE):
                file = files[rng.integers(len(files))]
                height, width, *_ = simplejpeg.decode_jpeg_header(file)
                top, left, crop_height, crop_width = draw_crop(PAPER.augmentation, width, height, rng)
                least = size / min(crop_height, crop_width)
                pixels = simplejpeg.decode_jpeg(file, "RGB", min_height=height * least, min_width=width * least)
                scale = pixels.shape[0] / height
                box = (left * scale, top * scale, (left + crop_width) * scale, (top + crop_height) * scale)
                box = (*box[:2], min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0]))
                crop = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))
                batch[sample] = crop[:, ::-1] if rng.random() < 0.5 else crop
            yield batch

    return batches


def ffcv_alone(folder: Path, scratch: Path) -> dict[str, Loader]:
    """FFCV, where it is installed, on the same pictures; empty where it is not."""
    try:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader as FfcvLoader
        from ffcv.loader import OrderOption
        from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor
        from ffcv.writer import DatasetWriter
    except ImportError as error:
        print(f"FFCV is not measured: {error}", file=sys.stderr)
        return {}

    pictures = [np.asarray(Image.open(file)) for file in sorted((folder / "train" / "all").iterdir())]

    class Pictures:
        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return pictures[index], 0

    def written(mode: str) -> Loader:
        file = scratch / f"{mode}.beton"
        field = RGBImageField(write_mode=mode, jpeg_quality=90)
        DatasetWriter(str(file), {"image": field, "label": IntField()}, num_workers=1).from_indexed_dataset(Pictures())

        def batches(size: int, workers: int) -> Batches:
            crop = RandomResizedCropRGBImageDecoder((size, size), PAPER.augmentation.crop_scale)
            loader = FfcvLoader(
                str(file), batch_size=BATCH_SIZE, num_workers=max(workers, 1), order=OrderOption.RANDOM, os_cache=True,
                pipelines={
                    "image": [crop, RandomHorizontalFlip(), ToTensor()],
                    "label": [IntDecoder(), ToTensor(), Squeeze()],
                },
            )  # fmt: skip
            while True:
                for images, _labels in loader:
                    yield images

        return batches

    return {"FFCV, JPEG": written("jpg"), "FFCV, raw": written("raw")}


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(
    table: str, loaders: dict[str, Loader], cores: int, options: argparse.Namespace, scratch: Path
) -> list[dict[str, Any]]:
    """Images a second of every loader at every size: interleaved rounds. What they read lies in `scratch`."""
    torch.set_num_threads(1)
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(whole)[:cores])
    rates: dict[tuple[str, int], list[float]] = {}
    try:
        for turn in range(options.rounds):
            for size in options.sizes:
                for name, loader in loaders.items():
                    read_all(scratch)
                    rate = images_per_s(loader(size, 0 if cores == 1 else cores), options.seconds, cores)
                    rates.setdefault((name, size), []).append(rate)
                    print(
                        f"{table}, {cores} cores, round {turn + 1}: {name}, {size} px: {rate:.0f} images/s", flush=True
                    )
    finally:
        os.sched_setaffinity(0, whole)
    return [
        {"table": table, "loader": name, "cores": cores, "image_size": size, "images_per_s": found}
        for (name, size), found in rates.items()
    ]


def images_per_s(batches: Batches, seconds: float, cores: int) -> float:
    """Over `seconds` or a little more, once what comes before the first full pace is over: a quarter of that first."""
    for _ in range(0 if cores == 1 else 2 * cores):  # what workers prepared while nobody waited
        next(batches)
    measured(batches, seconds / 4)
    count, spent_s = measured(batches, seconds)
    batches.close()
    return count * BATCH_SIZE / spent_s


def measured(batches: Batches, seconds: float) -> tuple[int, float]:
    """Batches that came, and seconds that they took."""
    begin, count = time.perf_counter(), 0
    while (spent_s := time.perf_counter() - begin) < seconds or count == 0:
        next(batches)
        count += 1
    return count, spent_s


# -- what is left of it ------------------------------------------------------------------------------------------------


def fidelity(folder: Path, size: int) -> dict[str, Any]:
    """PSNR, in decibels, of crops with scaled decoding against the same crops without it."""
    bare = dataclasses.replace(PAPER.augmentation, randaugment_ops=0)
    scaled, exact = (TrainTransform(bare, PAPER.data.mean, scaled_decoding=switch) for switch in (True, False))
    images = train_images(folder)
    psnr: list[float] = []
    decoded_at: dict[int, int] = {}
    for index in range(len(images)):
        picture = load_image(images, index)
        rngs = [[np.random.default_rng([index, crop]) for crop in range(REPEATS)] for _ in range(3)]
        draws = [scaled.draw(picture.width, picture.height, size, rng) for rng in rngs[0]]
        shrink = scaled.shrink(picture, draws, size)
        decoded_at[shrink] = decoded_at.get(shrink, 0) + 1
        pairs = zip(scaled.crops(picture, size, rngs[1]), exact.crops(picture, size, rngs[2]), strict=True)
        for one, other in pairs:
            error = float(((one.astype(float) - other) ** 2).mean())
            psnr.append(10 * math.log10(255**2 / error) if error else math.inf)
    finite = [min(value, 99.0) for value in psnr]  # equal crops count as 99 dB
    return {
        "image_size": size,
        "crops": len(psnr),
        "psnr_db": {
            "mean": statistics.mean(finite), "percentile_5": float(np.percentile(finite, 5)), "least": min(finite)
        },
        "images_by_shrink": {str(shrink): count for shrink, count in sorted(decoded_at.items())},
    }  # fmt: skip


def write(
    options: argparse.Namespace, folder: Path, results: list[dict[str, Any]], fidelities: list[dict[str, Any]]
) -> None:
    files = sorted((folder / "train" / "all").iterdir())
    shapes = [Image.open(file).size for file in files]
    environment = capture_environment(gpu=None, dataset={}, seed=0)
    record = {
        "measured": "images a second, loaders interleaved",
        "rounds": options.rounds,
        "seconds_at_a_time": options.seconds,
        "batch_size": BATCH_SIZE,
        "sizes": options.sizes,
        "images": {
            "count": len(files),
            "mean_width_px": statistics.mean(width for width, _ in shapes),
            "mean_height_px": statistics.mean(height for _, height in shapes),
            "mean_bytes": statistics.mean(file.stat().st_size for file in files),
        },
        "machine": {"cpu": environment["cpu"], "memory_gib": environment["memory_gib"]},
        "git": environment["git"],
        "load_average_at_end": os.getloadavg(),
        "versions": {
            name: version(name) for name in ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "ffcv")
        },
        "results": results,
        "fidelity": fidelities,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "loader.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / "loader.md").write_text(as_markdown(record), encoding="utf-8")
    draw(record, options.out)
    print(as_markdown(record))


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def ratios(record: dict[str, Any], result: dict[str, Any], reference: str) -> float | None:
    """Median over the rounds of a loader's speed over the reference's in the same round."""
    for other in record["results"]:
        if other["loader"] == reference and all(other[key] == result[key] for key in ("table", "cores", "image_size")):
            pairs = zip(result["images_per_s"], other["images_per_s"], strict=True)
            return statistics.median(one / another for one, another in pairs)
    return None


def as_markdown(record: dict[str, Any]) -> str:
    images = record["images"]
    lines = [
        f"{images['count']} JPEG files, mean {images['mean_width_px']:.0f}×{images['mean_height_px']:.0f} px and "
        f"{images['mean_bytes'] / 1000:.0f} kB; {record['machine']['cpu']['model']}; median of {record['rounds']} "
        f"interleaved rounds; the machine's load average was {record['load_average_at_end'][0]:.1f} at the end.",
    ]
    for table, cores in dict.fromkeys((result["table"], result["cores"]) for result in record["results"]):
        rows = [one for one in record["results"] if (one["table"], one["cores"]) == (table, cores)]
        sizes = sorted({row["image_size"] for row in rows})
        reference = REFERENCE if table == "recipe" else "FFCV, JPEG"
        title = "The whole recipe" if table == "recipe" else "Crop and decode alone"
        lines += ["", f"**{title}, {cores} core{'s' if cores > 1 else ''}**: images/s (ratio to {reference})", ""]
        lines += ["| loader | " + " | ".join(f"{size} px" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
        for name in dict.fromkeys(row["loader"] for row in rows):
            cells = []
            for size in sizes:
                (row,) = [row for row in rows if (row["loader"], row["image_size"]) == (name, size)]
                compared = reference.replace("JPEG", "raw") if "raw" in name and table != "recipe" else reference
                ratio = ratios(record, row, compared)
                rate = f"{statistics.median(row['images_per_s']):,.0f}"
                cells.append(rate + (f" ({ratio:.2f}×)" if ratio is not None else ""))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if any("raw" in row["loader"] and row["table"] != "recipe" for row in record["results"]):
        lines += ["", "A raw pack is compared with FFCV's raw file."]
    lines += [
        "", "**Scaled decoding against full**: PSNR of the crops in dB, images decoded at each scale", "",
        "| | " + " | ".join(f"{one['image_size']} px" for one in record["fidelity"]) + " |",
        "|---" * (len(record["fidelity"]) + 1) + "|",
    ]  # fmt: skip
    for key, title in (("mean", "mean"), ("percentile_5", "5th percentile"), ("least", "least")):
        lines.append(f"| {title} | " + " | ".join(f"{one['psnr_db'][key]:.1f}" for one in record["fidelity"]) + " |")
    for shrink in ("1", "2", "4", "8"):
        counts = (one["images_by_shrink"].get(shrink, 0) for one in record["fidelity"])
        lines.append(f"| images at 1/{shrink} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines) + "\n"


def draw(record: dict[str, Any], out: Path) -> None:
    tables = list(dict.fromkeys((result["table"], result["cores"]) for result in record["results"]))
    height = 2.4
    machine = (
        f"{record['machine']['cpu']['model']}; {record['images']['count']} JPEG files; median of interleaved rounds"
    )
    with mpl.rc_context(style.STYLE):
        figure = style.new_figure(height * len(tables), [(machine, style.FAINT)])
        panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
        for axes, (table, cores) in zip(panels, tables, strict=True):
            rows = [one for one in record["results"] if (one["table"], one["cores"]) == (table, cores)]
            labels = []
            for name in dict.fromkeys(row["loader"] for row in rows):
                colour, marker = LOOKS[name]
                line = {"color": colour, "marker": marker}
                points = sorted(
                    (row["image_size"], statistics.median(row["images_per_s"])) for row in rows if row["loader"] == name
                )
                axes.plot(*zip(*points, strict=True), **line)
                labels.append((points[-1][1], name, line))
            axes.set(yscale="log", xticks=record["sizes"], ylabel="images/s", xlabel="image size (px)")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_minor_locator(NullLocator())
            axes.set_title(f"{'The whole recipe' if table == 'recipe' else 'Crop and decode alone'}; cores: {cores}")
            style.end_labels(axes, labels, height - 0.8)
        figure.save(out, "loader")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # FFCV's threads can hold an interpreter that is being taken down for ever
