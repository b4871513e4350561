"""RandAugment in batches on the device makes of every crop what the CPU makes of it."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from test_data_augment import FILL, PAPER, RECIPE, photo
from tiny import tiny_config
from vit24h.data import Batch, DeviceAugment, Draws, Operation
from vit24h.data.augment import OPERATIONS, apply_operation, draw_operations
from vit24h.data.device_randaugment import DEVICE_OPERATIONS, flip_and_randaugment


def batch_of(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def drawn(*operations: Operation, flip: bool = False) -> Draws:
    return Draws((0, 0, 1, 1), flip, list(operations), (0, 0, 0, 0))


def on_cpu(image: Image.Image, draws: Draws) -> np.ndarray:
    pixels = np.asarray(image)[:, ::-1] if draws.flip else np.asarray(image)
    for operation in draws.operations:
        pixels = apply_operation(pixels, operation, FILL)
    return pixels.astype(int)


def test_every_operation_is_there():
    assert set(DEVICE_OPERATIONS) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(33, 20), (64, 64)])
def test_an_operation_makes_the_same_pixels_as_on_the_cpu_within_a_level(name, size):
    strengths = [0.0, 0.23, -0.5, 0.749, -0.9, 0.96, -1.0, 1.0]
    images = [photo(*size, seed) for seed in range(len(strengths))]
    images[3] = Image.new("RGB", size, (7, 7, 200))  # one level a channel: nothing to stretch or to level out
    draws = [drawn(Operation(name, strength)) for strength in strengths]
    found = flip_and_randaugment(batch_of(images), draws, FILL).permute(0, 2, 3, 1).numpy().astype(int)
    for image, one, result in zip(images, draws, found, strict=True):
        difference = abs(result - on_cpu(image, one))
        # A pixel whose source lies on the very edge may be filled in one and read in the other.
        assert np.sort(difference.max(-1).ravel())[: -max(size) // 2].max() <= 1, one
        assert difference.mean() < 0.3, one


def test_each_sample_gets_its_own_draws_in_their_order():
    rng = np.random.default_rng(0)
    images = [photo(48, 48, seed) for seed in range(40)]
    draws = [drawn(*draw_operations(RECIPE, rng), flip=bool(rng.random() < 0.5)) for _ in images]
    assert {len(one.operations) for one in draws} == {0, 1, 2}
    before = batch_of(images)
    found = flip_and_randaugment(before.clone(), draws, FILL)
    assert found.dtype == torch.uint8
    for image, one, result in zip(images, draws, found, strict=True):
        # Two operations may make more of a level: a threshold, a stretched contrast.
        assert abs(result.permute(1, 2, 0).numpy() - on_cpu(image, one)).mean() < 1.5, one


def test_the_batch_it_is_given_stays_as_it_was():
    images = batch_of([photo(32, 32)])
    before = images.clone()
    flip_and_randaugment(images, [drawn(Operation("Invert", 1.0), flip=True)], FILL)
    assert torch.equal(images, before)


def test_a_run_with_randaugment_on_the_device_trains_on_nearly_the_same_images(tmp_path):
    """Through the loader and all: the same draws, carried out elsewhere."""
    from tiny import write_images
    from vit24h.data import BatchPlan
    from vit24h.engine import inputs

    config = tiny_config(write_images(tmp_path / "images"), arm="baseline")
    plain = dataclasses.replace(
        RECIPE, erasing_probability=0.0, mixup_alpha=0.0, cutmix_alpha=0.0, randaugment_ops=1, randaugment_on="cpu"
    )
    batches = {}
    for where in ("cpu", "device"):
        ours = dataclasses.replace(config, augmentation=dataclasses.replace(plain, randaugment_on=where))
        dataset = inputs.open_configured_dataset(ours.data)
        with inputs.train_loader(
            ours, dataset, inputs.epoch_order(ours, dataset),
            lambda _epoch, _position: BatchPlan(image_size=32, batch_size=16),
            device=torch.device("cpu"), start_epoch=0, start_position=0,
        ) as loader:  # fmt: skip
            batch: Batch = next(loader)
        assert (batch.draws is not None) == (where == "device")
        batches[where], _ = DeviceAugment(ours.augmentation, PAPER.data.mean, PAPER.data.std, 4, 0)(batch)
    difference = abs(batches["cpu"] - batches["device"])
    assert difference.mean() < 0.01  # in deviations of ImageNet; a level is 0.017
    assert (difference > 0.05).float().mean() < 0.01
