"""What happens to a whole batch on the device: normalisation, random erasing, mixup or cutmix; RandAugment if it is to.

Batches arrive as uint8, so that a quarter of the bytes cross the bus, and become float here.

Must not know: files, PIL, the model.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from vit24h.config import AugmentationConfig
from vit24h.data.augment import Box
from vit24h.data.device_randaugment import flip_and_randaugment
from vit24h.data.loader import Batch
from vit24h.data.randomness import Stream, generator


class DeviceAugment:
    """The part of the recipe that works on batches (METHOD.md, recipe). On CPU and GPU alike.

    Every draw is a function of the seed and the batch's (epoch, position). On a CPU the images that it returns lie in
    memory of its own: the next call writes over them.

    Args:
        augmentation: probabilities and strengths.
        mean, std: of the normalisation, in units of full scale.
        num_classes: width of the targets.
        seed: of the run.
    """

    def __init__(
        self,
        augmentation: AugmentationConfig,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        num_classes: int,
        seed: int,
    ):
        self._augmentation = augmentation
        self._mean = mean
        self._std = std
        self._fill = tuple(round(255 * channel) for channel in mean)
        self._constants: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self._kept: torch.Tensor | None = None
        self._num_classes = num_classes
        self._seed = seed

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a training step.

        Returns:
            images: (B, 3, H, W) float32, normalised, erased, mixed.
            targets: (B, num_classes) float32, each row of sum 1. Not smoothed: that is the loss's business, as
                `F.cross_entropy(logits, targets, label_smoothing=…)` smooths soft targets just as well, smoothing
                and mixing being linear.
        """
        images = batch.images
        if batch.draws is not None:
            images = flip_and_randaugment(images, batch.draws, self._fill)
        images = self.normalise(images)
        if self._augmentation.erasing_probability > 0:
            erase = _erase_by_box if images.device.type == "cpu" else _erase_by_mask
            images = erase(images, batch.erasing_boxes, self._noise(images.device, batch))
        targets = F.one_hot(batch.labels, self._num_classes).float()
        return self._mix(images, targets, generator(Stream.MIX, self._seed, batch.epoch, batch.position))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) to float32 of mean 0 and deviation 1 on ImageNet; all that evaluation does."""
        if images.device not in self._constants:  # made once: bringing them to a GPU makes the host wait for it
            mean, std = torch.tensor([self._mean, self._std], device=images.device).view(2, 1, 3, 1, 1) * 255
            self._constants[images.device] = mean, std
        mean, std = self._constants[images.device]
        return self._as_float(images).sub_(mean).div_(std)

    def _as_float(self, images: torch.Tensor) -> torch.Tensor:
        """The same levels in float32, channels first in memory."""
        if images.device.type != "cpu":  # where torch keeps freed memory by itself
            return images.contiguous().to(torch.float32)
        if self._kept is None or self._kept.shape != images.shape:
            # Taking this much memory from the system anew for each batch costs it more than all arithmetic on it.
            with torch.inference_mode(False):  # evaluation and training may share it
                self._kept = torch.empty(images.shape)
        return self._kept.copy_(images)

    def _noise(self, device: torch.device, batch: Batch) -> torch.Generator:
        seed = generator(Stream.ERASING_NOISE, self._seed, batch.epoch, batch.position).integers(2**63)
        return torch.Generator(device).manual_seed(int(seed))

    def _mix(
        self, images: torch.Tensor, targets: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixup or cutmix of the whole batch with itself in reverse, with one lambda.

        In reverse, as in the paper, and not rolled by one as in torchvision's MixUp and CutMix: with repeated
        augmentation the neighbour is most often another crop of the same image, and two thirds of the pairs would
        mix nothing.
        """
        augmentation = self._augmentation
        mixup, cutmix = augmentation.mixup_alpha > 0, augmentation.cutmix_alpha > 0
        if not mixup and not cutmix:
            return images, targets
        if mixup and cutmix:
            cutmix = rng.random() < augmentation.cutmix_switch_probability
        share = rng.beta(*[augmentation.cutmix_alpha if cutmix else augmentation.mixup_alpha] * 2)  # that stays
        if cutmix:
            height, width = images.shape[-2:]
            top, left, box_height, box_width = draw_cutmix_box(height, width, share, rng)
            rows, columns = slice(top, top + box_height), slice(left, left + box_width)
            images[:, :, rows, columns] = images[:, :, rows, columns].flip(0)
            share = 1 - box_height * box_width / (height * width)
        else:
            images = torch.lerp(images.flip(0), images, share)
        return images, torch.lerp(targets.flip(0), targets, share)


def draw_cutmix_box(height: int, width: int, share: float, rng: np.random.Generator) -> Box:
    """The box that cutmix pastes (Yun et al., arXiv 1905.04899).

    Its sides are √(1 − share) of the image's, its centre is anywhere in the image, and what lies outside is cut off:
    the box's own area, not `share`, says how much was pasted.
    """
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    centre_y, centre_x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(centre_y - box_height // 2, 0), min(centre_y + (box_height + 1) // 2, height)
    left, right = max(centre_x - box_width // 2, 0), min(centre_x + (box_width + 1) // 2, width)
    return top, left, bottom - top, right - left


def _erase_by_mask(images: torch.Tensor, boxes: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """`images` with noise inside each one's box. Draws noise for all pixels, so that a GPU is never asked for a box."""
    top, left, height, width = boxes[:, :, None].unbind(1)  # (B, 1) each
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    inside_rows = (rows >= top) & (rows < top + height)  # (B, H)
    inside_columns = (columns >= left) & (columns < left + width)  # (B, W)
    everywhere = torch.randn(images.shape, device=images.device, generator=noise)
    return torch.where((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], everywhere, images)


def _erase_by_box(images: torch.Tensor, boxes: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """As `_erase_by_mask`, in place, and with no more noise than is needed: on a CPU it is dearer than all the rest."""
    for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True):
        if height:
            shape = (images.shape[1], height, width)
            image[:, top : top + height, left : left + width] = torch.randn(shape, generator=noise)
    return images


class DeviceCopy:
    """Brings batches to the device; to a GPU on a stream of its own, while the step before is still being computed.

    Args:
        device: where to. Batches for a GPU should lie in page-locked memory.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The same batch on the device; what is computed from now on finds it there."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self._device, non_blocking=True)
        using = torch.cuda.current_stream(self._device)
        using.wait_stream(self._stream)
        for tensor in moved.tensors():  # or the stream that made them might reuse their memory too early
            tensor.record_stream(using)
        return moved
