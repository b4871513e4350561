"""What happens to a batch on the device: normalised, erased, mixed with itself in reverse, targets to match."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as torchvision_functional
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy

from vit24h.config import AugmentationConfig, load_config
from vit24h.data import Batch, DeviceAugment
from vit24h.data.device import _erase_by_box, _erase_by_mask, draw_cutmix_box

PAPER = load_config("base")
PLAIN = dataclasses.replace(PAPER.augmentation, erasing_probability=0.0, mixup_alpha=0.0, cutmix_alpha=0.0)
CLASSES = 20


def augment(augmentation: AugmentationConfig, seed: int = 0) -> DeviceAugment:
    return DeviceAugment(augmentation, PAPER.data.mean, PAPER.data.std, CLASSES, seed)


def batch_of(count: int = 8, size: int = 32, *, epoch: int = 0, position: int = 0) -> Batch:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return Batch(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.arange(count),
        erasing_boxes=torch.zeros(count, 4, dtype=torch.int32),
        epoch=epoch,
        position=position,
        image_size=size,
        last_of_epoch=False,
        incidents=[],
    )


def test_images_are_normalised_as_torchvision_does_it():
    batch = batch_of()
    images, targets = augment(PLAIN)(batch)
    expected = torchvision_functional.normalize(batch.images / 255, list(PAPER.data.mean), list(PAPER.data.std))
    torch.testing.assert_close(images, expected, atol=2e-6, rtol=0)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert (targets == F.one_hot(batch.labels, CLASSES)).all()
    assert (augment(PLAIN).normalise(batch.images) == images).all(), "evaluation normalises as training does"


def test_training_and_evaluation_share_a_normalisation():
    """Evaluation runs without gradients, in a mode whose tensors training may not write to."""
    both = augment(PLAIN)
    with torch.inference_mode():
        evaluated = both.normalise(batch_of().images).clone()
    trained, _ = both(batch_of())
    trained.add_(1)
    with torch.inference_mode():
        assert (both.normalise(batch_of().images) == evaluated).all()


def test_the_batch_itself_is_left_as_it_was():
    batch = batch_of()
    before = batch.images.clone()
    augment(PAPER.augmentation)(batch)
    assert (batch.images == before).all()


def test_erasing_fills_exactly_the_box_with_normal_noise():
    erasing = dataclasses.replace(PLAIN, erasing_probability=0.25)
    boxes = torch.tensor([[3, 5, 20, 10], [0, 0, 0, 0], [0, 12, 32, 20], [31, 31, 1, 1]], dtype=torch.int32)
    batch = dataclasses.replace(batch_of(4), erasing_boxes=boxes)
    plain, _ = augment(PLAIN)(batch)
    images, _ = augment(erasing)(batch)
    noise = []
    for image, original, (top, left, height, width) in zip(images, plain, boxes.tolist(), strict=True):
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[top : top + height, left : left + width] = False
        assert (image[:, outside] == original[:, outside]).all()
        noise.append(image[:, ~outside].flatten())
    noise = torch.cat(noise)
    assert len(noise) == 3 * (200 + 640 + 1)
    assert len(noise.unique()) > 0.99 * len(noise), "each pixel and channel has its own"
    assert noise.mean().item() == pytest.approx(0, abs=0.08)
    assert noise.std().item() == pytest.approx(1, abs=0.06)


def test_mixup_is_a_weighted_mean_with_the_batch_in_reverse():
    mixup = dataclasses.replace(PLAIN, mixup_alpha=0.8)
    shares = []
    for position in range(300):
        batch = batch_of(4, 8, position=position)
        plain, _ = augment(PLAIN)(batch)
        images, targets = augment(mixup)(batch)
        share = targets[0, 0].item()
        shares.append(share)
        torch.testing.assert_close(images, share * plain + (1 - share) * plain.flip(0), atol=1e-5, rtol=0)
        assert targets[0, 3].item() == pytest.approx(1 - share, abs=1e-6)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
    reference = np.random.default_rng(0).beta(0.8, 0.8, 100_000)
    assert np.percentile(shares, [10, 50, 90]) == pytest.approx(np.percentile(reference, [10, 50, 90]), abs=0.08)


def test_cutmix_pastes_a_box_of_the_partner_and_counts_its_pixels():
    cutmix = dataclasses.replace(PLAIN, cutmix_alpha=1.0)
    shares = []
    for position in range(300):
        batch = batch_of(4, 16, position=position)
        plain, _ = augment(PLAIN)(batch)
        images, targets = augment(cutmix)(batch)
        own = (images == plain).all(1)
        assert (own | (images == plain.flip(0)).all(1)).all(), "each pixel is the image's own or its partner's"
        assert targets[0, 0].item() == pytest.approx(own[0].float().mean().item(), abs=1e-6)
        assert targets[0, 3].item() == pytest.approx(1 - own[0].float().mean().item(), abs=1e-6)
        pasted = (~own[0]).nonzero()
        if len(pasted):
            height, width = (pasted.amax(0) - pasted.amin(0) + 1).tolist()
            assert height * width == len(pasted), "it is a box"
        shares.append(targets[0, 0].item())
    assert 0.5 < np.mean(shares) < 0.75  # more than half stays, as boxes are cut off at the border


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_a_cutmix_box_lies_in_the_image_and_is_as_large_as_its_share(share):
    rng = np.random.default_rng(0)
    boxes = np.array([draw_cutmix_box(32, 48, share, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (boxes >= 0).all() and (top + height <= 32).all() and (left + width <= 48).all()
    side = np.sqrt(1 - share)
    assert height.max() == int(32 * side)
    assert width.max() == int(48 * side)


def test_every_batch_is_mixed_half_of_them_by_cutmix():
    both = dataclasses.replace(PLAIN, mixup_alpha=0.8, cutmix_alpha=1.0)
    cut = 0
    for position in range(400):
        batch = batch_of(2, 16, position=position)
        plain, _ = augment(PLAIN)(batch)
        images, _ = augment(both)(batch)
        cut += bool(((images == plain) | (images == plain.flip(0))).all())
    assert cut / 400 == pytest.approx(PAPER.augmentation.cutmix_switch_probability, abs=0.08)


def test_with_repeated_augmentation_partners_are_other_images():
    labels = torch.arange(64) // 3  # three neighbours each
    assert (labels != labels.flip(0)).sum() >= 62
    assert (labels != labels.roll(1)).sum() < 24, "rolled by one, most would meet another crop of themselves"
    mixup = dataclasses.replace(PLAIN, mixup_alpha=0.8)
    augmented = DeviceAugment(mixup, PAPER.data.mean, PAPER.data.std, 22, seed=0)
    _, targets = augmented(dataclasses.replace(batch_of(64), labels=labels))
    assert ((targets > 0).sum(1) == 2).sum() >= 62


def test_smoothing_in_the_loss_is_smoothing_of_the_mixed_targets():
    both = dataclasses.replace(PLAIN, mixup_alpha=0.8)
    batch = batch_of()
    _, targets = augment(both)(batch)
    logits = torch.randn(8, CLASSES, generator=torch.Generator().manual_seed(0))
    share = targets[0, 0].item()
    expected = SoftTargetCrossEntropy()(logits, mixup_target(batch.labels, CLASSES, share, smoothing=0.1))
    torch.testing.assert_close(F.cross_entropy(logits, targets, label_smoothing=0.1), expected)


def test_every_draw_is_a_function_of_seed_epoch_and_position():
    boxes = torch.tensor([[3, 5, 20, 10]] * 8, dtype=torch.int32)

    def result(seed: int, epoch: int, position: int) -> bytes:
        torch.rand(1)  # what else draws from torch's global generator is of no account
        batch = dataclasses.replace(batch_of(epoch=epoch, position=position), erasing_boxes=boxes)
        images, targets = augment(PAPER.augmentation, seed)(batch)
        return images.numpy().tobytes() + targets.numpy().tobytes()

    assert result(0, 1, 64) == result(0, 1, 64)
    assert len({result(0, 1, 64), result(1, 1, 64), result(0, 2, 64), result(0, 1, 128)}) == 4


def test_a_gpu_and_a_cpu_erase_the_same_pixels():
    boxes = torch.tensor([[3, 5, 20, 10], [0, 0, 0, 0], [0, 12, 32, 20], [31, 31, 1, 1]], dtype=torch.int32)
    erased = [
        erase(torch.full((4, 3, 32, 32), 9.0), boxes, torch.Generator().manual_seed(0)) != 9.0
        for erase in (_erase_by_box, _erase_by_mask)
    ]
    assert torch.equal(*erased)
    assert erased[0].sum((1, 2, 3)).tolist() == [600, 0, 1920, 3]
