"""The loader: the same batches for any number of workers and from any start, and nothing left behind.

Images are real files, workers are real processes.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vit24h.config import load_config
from vit24h.data import (
    Batch,
    BatchPlan,
    EpochOrder,
    EvalLoader,
    EvalTransform,
    FolderIndex,
    TrainLoader,
    TrainTransform,
    draw_images,
    open_dataset,
)
from vit24h.data.decode import load_image
from vit24h.data.randomness import Generators, Stream, generator
from vit24h.errors import UserError

# Torch thinks three workers too many for two cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

PAPER = load_config("base")
TRANSFORM = TrainTransform(PAPER.augmentation, PAPER.data.mean, scaled_decoding=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """36 training images of 4 classes, 20 for validation."""
    return draw_images(tmp_path_factory.mktemp("images") / "drawn", classes=4, train_per_class=9, val_per_class=5)


@pytest.fixture
def own_folder(folder, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(folder, tmp_path / "damaged"))


def growing(epoch: int, position: int) -> BatchPlan:
    """Sizes and batch sizes that change between epochs and in the middle of them."""
    return BatchPlan(image_size=32 + 16 * (epoch % 2) + 8 * (position >= 16), batch_size=8 if epoch < 2 else 5)


def train_loader(folder: Path, *, workers: int = 0, plan=growing, **options) -> TrainLoader:
    images = FolderIndex.scan(folder / "train")
    options = {"seed": 7, "prefetch_batches": 2, "pin_memory": False, **options}
    order = EpochOrder(len(images), options["seed"], repeats=3, epoch_multiple=1)
    return TrainLoader(images, order, TRANSFORM, workers=workers, plan=plan, **options)


def take(loader: TrainLoader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert (one.epoch, one.position) == (other.epoch, other.position)
        assert one.last_of_epoch == other.last_of_epoch
        assert one.incidents == other.incidents
        for name in ("images", "labels", "erasing_boxes"):
            assert torch.equal(getattr(one, name), getattr(other, name))


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_a_moved_generator_draws_what_one_made_at_the_address_draws():
    moving = Generators(Stream.SAMPLE, 7)
    for epoch, position in [(0, 0), (3, 5), (0, 0), (2**40, 2**50), (3, 6)]:
        moved, made = moving.at(epoch, position), generator(Stream.SAMPLE, 7, epoch, position)
        assert moved.random(5).tolist() == made.random(5).tolist()
        assert moved.integers(7, dtype=np.int32) == made.integers(7, dtype=np.int32)  # half a number: leaves a rest
        assert moved.standard_normal() == made.standard_normal()


def test_a_batch_holds_what_was_asked_for(folder):
    (batch,) = take(train_loader(folder), 1)
    assert batch.images.shape == (8, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.shape == (8,)
    assert batch.labels.dtype == torch.int64
    assert batch.erasing_boxes.shape == (8, 4)
    assert batch.erasing_boxes.dtype == torch.int32
    assert batch.incidents == []


def test_every_sample_is_the_crop_that_seed_epoch_and_position_say(folder):
    """Written out once more, as plainly as it can be said."""
    images = FolderIndex.scan(folder / "train")
    order = EpochOrder(len(images), seed=7, repeats=3, epoch_multiple=1)
    for batch in take(train_loader(folder), 6):
        indices = order.image_indices(batch.epoch)
        for sample in range(len(batch.labels)):
            position = batch.position + sample
            group = range(position // 3 * 3, position // 3 * 3 + 3)  # the crops of this image: decoded once for all
            rngs = [generator(Stream.SAMPLE, 7, batch.epoch, crop) for crop in group]
            picture = load_image(images, indices[position])
            expected = TRANSFORM.crops(picture, batch.image_size, rngs)[position % 3]
            assert (batch.images[sample].permute(1, 2, 0).numpy() == expected).all()
            rng = generator(Stream.SAMPLE, 7, batch.epoch, position)
            drawn = TRANSFORM.draw(picture.width, picture.height, batch.image_size, rng)
            assert batch.erasing_boxes[sample].tolist() == list(drawn.erasing_box)
            assert batch.labels[sample] == images.labels[indices[position]]


def test_where_batches_begin_changes_no_sample(tmp_path):
    """Crops of an image share its decoding, as fine as the finest of them: even where a batch ends between them."""
    rng = np.random.default_rng(0)
    (tmp_path / "train" / "one").mkdir(parents=True)
    for number in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        coarse.resize((600, 400)).save(tmp_path / "train" / "one" / f"{number}.jpg")

    def images_in_batches_of(size: int) -> torch.Tensor:
        loader = train_loader(tmp_path, plan=lambda _epoch, _position: BatchPlan(32, size))
        return torch.cat([batch.images for batch in take(loader, 8 // size)])

    assert torch.equal(images_in_batches_of(8), images_in_batches_of(4))
    assert torch.equal(images_in_batches_of(8), images_in_batches_of(2))


def test_the_plan_decides_sizes_and_epochs_end_where_no_batch_fits(folder):
    batches = take(train_loader(folder), 4 + 4 + 7 + 1)
    # 36 samples an epoch: four batches of 8 and a rest of 4 in epochs 0 and 1, seven of 5 and a rest of 1 after that
    assert [(batch.epoch, batch.position) for batch in batches] == [
        *[(0, position) for position in (0, 8, 16, 24)],
        *[(1, position) for position in (0, 8, 16, 24)],
        *[(2, position) for position in (0, 5, 10, 15, 20, 25, 30)],
        (3, 0),
    ]
    assert [batch.last_of_epoch for batch in batches] == [
        *[False] * 3,
        True,
        *[False] * 3,
        True,
        *[False] * 6,
        True,
        False,
    ]
    for batch in batches:
        plan = growing(batch.epoch, batch.position)
        assert batch.image_size == plan.image_size
        assert batch.images.shape == (plan.batch_size, 3, plan.image_size, plan.image_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_plan_is_asked_once_for_each_batch_and_a_bounded_number_ahead(folder, workers):
    asked = []

    def plan(epoch: int, position: int) -> BatchPlan:
        asked.append((epoch, position))
        return BatchPlan(32, 9)

    with train_loader(folder, workers=workers, plan=plan) as loader:
        used = []
        for _ in range(10):
            batch = next(loader)
            used.append((batch.epoch, batch.position))
            assert len(asked) <= len(used) + 2 * workers + 1
    assert asked == sorted(set(asked))
    assert asked[:10] == used


def test_an_image_is_read_once_for_its_neighbouring_crops(folder):
    class CountingIndex(FolderIndex):
        def read(self, index: int) -> bytes:
            reads.append(index)
            return super().read(index)

    reads: list[int] = []
    images = CountingIndex.scan(folder / "train")
    order = EpochOrder(len(images), 0, repeats=3, epoch_multiple=1)
    loader = TrainLoader(
        images, order, TRANSFORM, seed=0, workers=0, prefetch_batches=1, pin_memory=False,
        plan=lambda _epoch, _position: BatchPlan(32, 36),
    )  # fmt: skip
    take(loader, 1)
    assert len(reads) == 12


# -- determinism ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_one_process(folder) -> list[Batch]:
    return take(train_loader(folder), 18)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(folder, in_one_process, workers):
    assert_same(take(train_loader(folder, workers=workers), 18), in_one_process)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [2, 3, 4, 9])
def test_batches_are_the_same_from_a_start_in_the_middle(folder, in_one_process, first, workers):
    start = {"start_epoch": in_one_process[first].epoch, "start_position": in_one_process[first].position}
    assert_same(take(train_loader(folder, workers=workers, **start), 18 - first), in_one_process[first:])


def test_a_start_behind_the_last_batch_of_an_epoch_is_the_next_epoch(folder, in_one_process):
    for position in (32, 36):
        assert_same(take(train_loader(folder, start_position=position), 3), in_one_process[4:7])


def test_another_seed_gives_other_batches(folder, in_one_process):
    (batch,) = take(train_loader(folder, seed=8), 1)
    assert not torch.equal(batch.images, in_one_process[0].images)


def test_processes_share_a_batch_without_overlap(folder, in_one_process):
    parts = [take(train_loader(folder, rank=rank, world_size=2), 6) for rank in range(2)]
    for whole, *shares in zip(in_one_process[:6], *parts, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share.images, whole.images[rank::2])
            assert torch.equal(share.labels, whole.labels[rank::2])
            assert share.last_of_epoch == whole.last_of_epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_to_the_model(folder, workers):
    torch.manual_seed(0)
    np.random.seed(0)
    take(train_loader(folder, workers=workers), 3)
    with eval_loader(folder, workers=workers) as loader:
        list(loader)
    found = torch.rand(4), np.random.rand(4)
    torch.manual_seed(0)
    np.random.seed(0)
    assert torch.equal(found[0], torch.rand(4))
    assert (found[1] == np.random.rand(4)).all()


# -- bad images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_replaced_by_the_next_one_and_told(own_folder, workers):
    images = FolderIndex.scan(own_folder / "train")
    # Two in a row, and the last of the index, whose next one is the first.
    reasons = {10: "not an image", 11: "cannot be decoded: image file is truncated", 35: "empty file"}
    replaced_by = {10: 12, 11: 12, 35: 0}
    images.path(10).write_text("this is no image")
    images.path(11).write_bytes(images.read(11)[:-300])
    images.path(35).write_bytes(b"")

    order = EpochOrder(36, seed=7, repeats=3, epoch_multiple=1)
    batches = take(train_loader(own_folder, workers=workers, plan=lambda _e, _p: BatchPlan(32, 9)), 12)
    assert {index for batch in batches for index in reasons if index in order.image_indices(batch.epoch)}
    for batch in batches:
        shown = order.image_indices(batch.epoch)[batch.position : batch.position + 9]
        replaced = [replaced_by.get(index, index) for index in shown.tolist()]
        assert batch.labels.tolist() == images.labels[replaced].tolist()
        told = {incident["path"]: incident for incident in batch.incidents}
        expected = {i for i in reasons if i in shown} | ({11} if 10 in shown else set())
        assert set(told) == {str(images.path(i)) for i in expected}
        for i in expected:
            incident = told[str(images.path(i))]
            assert incident["kind"] == "corrupt_image"
            assert incident["reason"].startswith(reasons[i])
            assert incident["replaced_by"] == str(images.path(replaced_by[i]))


def test_a_replacement_is_cropped_as_the_image_it_replaces_would_be(folder, own_folder, tmp_path):
    intact = FolderIndex.scan(folder / "train")
    mended = Path(shutil.copytree(folder, tmp_path / "mended"))
    for index in range(0, 36, 2):
        damaged = intact.path(index).relative_to(folder)
        (own_folder / damaged).write_text("this is no image")
        shutil.copy(intact.path(index + 1), mended / damaged)
    pairs = zip(take(train_loader(own_folder), 4), take(train_loader(mended), 4), strict=True)
    assert all(torch.equal(one.images, other.images) for one, other in pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_vanishes_is_one_clear_error(own_folder, workers):
    with train_loader(own_folder, workers=workers) as loader:
        next(loader)
        shutil.rmtree(own_folder)
        with pytest.raises(UserError, match=r"No such file.*still in place") as error:
            for _ in range(20):
                next(loader)
        assert str(own_folder) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_larger_than_an_epoch_says_what_to_set(folder, workers):
    with pytest.raises(UserError, match=r"optimizer\.batch_size 64: more than the 36 samples"):
        train_loader(folder, workers=workers, plan=lambda _epoch, _position: BatchPlan(32, 64))


# -- evaluation -------------------------------------------------------------------------------------------------------


def eval_loader(folder: Path, *, workers: int = 0, batch_size: int = 8, **options) -> EvalLoader:
    images = open_dataset(folder).val
    return EvalLoader(
        images, EvalTransform(48, 8 / 7), batch_size=batch_size, workers=workers, pin_memory=False, **options
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_evaluation_sees_every_image_once_each_time(folder, workers):
    images = open_dataset(folder).val
    expected = [EvalTransform(48, 8 / 7)(load_image(images, i)) for i in range(20)]
    with eval_loader(folder, workers=workers) as loader:
        assert len(loader) == 3
        for _ in range(3):
            batches = list(loader)
            assert [len(labels) for _, labels in batches] == [8, 8, 4]
            pixels = torch.cat([pixels for pixels, _ in batches])
            assert pixels.dtype == torch.uint8
            assert (pixels.permute(0, 2, 3, 1).numpy() == np.stack(expected)).all()
            labels = torch.cat([labels for _, labels in batches])
            assert labels.dtype == torch.int64
            assert labels.tolist() == images.labels.tolist()


def test_evaluation_broken_off_starts_from_the_beginning_again(folder):
    with eval_loader(folder, workers=2) as loader:
        next(iter(loader))
        assert sum(len(labels) for _, labels in loader) == 20


def test_processes_share_the_validation_images(folder):
    whole = torch.cat([pixels for pixels, _ in eval_loader(folder)])
    shares = [torch.cat([p for p, _ in eval_loader(folder, rank=rank, world_size=3)]) for rank in range(3)]
    assert [len(share) for share in shares] == [7, 7, 6]
    assert all(torch.equal(share, whole[rank::3]) for rank, share in enumerate(shares))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_validation_image_stops_the_evaluation_by_name(own_folder, workers):
    path = open_dataset(own_folder).val.path(13)
    path.write_text("this is no image")
    with eval_loader(own_folder, workers=workers) as loader, pytest.raises(UserError, match=r"not an image") as error:
        list(loader)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# -- processes --------------------------------------------------------------------------------------------------------


def children() -> set[int]:
    """Processes whose parent is this one, ended but not waited for included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (")
            if int(rest.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(pid))
    return found


@pytest.mark.parametrize("batches", [0, 1, 7])
def test_nothing_is_left_of_the_workers_after_close(folder, batches):
    before = children()
    train = train_loader(folder, workers=3)
    evaluation = eval_loader(folder, workers=2)
    for _ in range(batches):
        next(train)
    if batches:
        list(evaluation)
    assert len(children() - before) == (5 if batches else 3)
    train.close()
    evaluation.close()
    assert children() == before
    train.close()
    evaluation.close()
    assert list(train) == []


def test_workers_live_through_epochs_and_sizes(folder):
    before = children()
    with train_loader(folder, workers=2) as loader:
        workers = children() - before
        for _ in range(20):
            next(loader)
        assert children() - before == workers


def test_workers_leave_signals_to_the_main_process(folder, in_one_process):
    before = children()
    with train_loader(folder, workers=2) as loader:
        batches = [next(loader)]
        for worker in children() - before:
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        batches += [next(loader) for _ in range(9)]
    assert_same(batches, in_one_process[:10])
    assert children() == before


def test_a_worker_that_is_killed_is_one_clear_error(folder):
    before = children()
    with pytest.raises(UserError, match=r"loader process was killed.*runtime\.workers.*more memory") as error:  # noqa: SIM117
        with train_loader(folder, workers=2) as loader:
            next(loader)
            os.kill(min(children() - before), signal.SIGKILL)
            for _ in range(50):
                next(loader)
    assert "\n" not in str(error.value)
    assert children() == before


def test_full_shared_memory_is_one_clear_error(folder):
    """As in a container, whose /dev/shm is small. Here files may not grow, which looks the same to a worker."""
    before, files = children(), set(Path("/dev/shm").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        loader = train_loader(folder, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with loader, pytest.raises(UserError, match=r"/dev/shm.*full.*shm-size"):
        next(loader)
    assert children() == before
    assert not [file for file in set(Path("/dev/shm").iterdir()) - files if file.name.startswith("torch_")]


def test_a_killed_worker_does_not_interrupt_what_the_program_is_at(folder):
    before = children()
    with train_loader(folder, workers=2) as loader:
        next(loader)
        os.kill(min(children() - before), signal.SIGKILL)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            time.sleep(0.01)  # a step, a checkpoint


def test_a_stuck_worker_is_ended_all_the_same(folder):
    before = children()
    loader = train_loader(folder, workers=1)
    next(loader)
    (worker,) = children() - before
    os.kill(worker, signal.SIGSTOP)
    loader.close()
    assert children() == before


def script(folder: Path, ending: str) -> list[str]:
    code = f"""
        import os, signal, sys
        from vit24h.config import load_config
        from vit24h.data import *
        paper = load_config("base")
        images = open_dataset({str(folder)!r}).train
        order = EpochOrder(len(images), 0, 3, 1)
        loader = TrainLoader(
            images, order, TrainTransform(paper.augmentation, paper.data.mean, scaled_decoding=True),
            seed=0, workers=2, prefetch_batches=2, pin_memory=False,
            plan=lambda epoch, position: BatchPlan(32, 8),
        )
        next(loader)
        for worker in loader._processes._iterator._workers:
            print(worker.pid, flush=True)
        {ending}
        """
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.mark.parametrize(
    ("ending", "status"),
    [("", 0), ("raise SystemExit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL)],
    ids=["at its end", "by an exception", "killed"],
)
def test_a_program_that_ends_without_close_leaves_no_worker(folder, ending, status):
    done = subprocess.run(script(folder, ending), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == status, done.stderr
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert done.stderr == ""
