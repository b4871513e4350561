"""Flip and RandAugment of a whole batch on the device: what `augment.py` does to one crop, for many at a time.

The draws are the loader's, so both ways see the same randomness; pixels agree within one level an operation. It is for
machines with few CPU cores beside a fast GPU.

The 15 operations are four kinds of work: a table of 256 levels for every channel, a blend with grey, a blend with a
smoothed image, an affine warp. Samples are sorted by kind on the CPU, where the draws are, so nothing is read back from
the device.

Must not know: how draws are made, batches, the model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vit24h.data.augment import Draws, enhancement, kept_bits, solarize_added, solarize_threshold

Work = Callable[[Tensor, list[float], tuple[int, ...]], Tensor]


def flip_and_randaugment(images: Tensor, draws: Sequence[Draws], fill: tuple[int, ...]) -> Tensor:
    """A batch with every sample flipped and changed as it was drawn.

    Args:
        images: (B, 3, H, W) uint8; not changed.
        draws: one of each sample.
        fill: colour, 0 to 255, of what moves in.

    Returns:
        (B, 3, H, W) uint8 on the device of `images`.
    """
    images = images.clone(memory_format=torch.contiguous_format)
    if flipped := [sample for sample, drawn in enumerate(draws) if drawn.flip]:
        where = _to_device(flipped, images)
        images[where] = images[where].flip(-1)
    for turn in range(max((len(drawn.operations) for drawn in draws), default=0)):
        samples: dict[str, list[int]] = defaultdict(list)
        strengths: dict[str, list[float]] = defaultdict(list)
        for sample, drawn in enumerate(draws):
            if turn < len(drawn.operations):
                operation = drawn.operations[turn]
                samples[operation.name].append(sample)
                strengths[operation.name].append(operation.strength)
        for name in samples:
            where = _to_device(samples[name], images)
            images[where] = DEVICE_OPERATIONS[name](images[where], strengths[name], fill)
    return images


# -- tables: every level of a channel becomes another ------------------------------------------------------------------


def _autocontrast(images: Tensor, _strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    levels = images.flatten(2)
    low, high = levels.amin(2).double()[..., None], levels.amax(2).double()[..., None]  # (n, 3, 1)
    scale = 255 / (high - low).clamp(min=1)
    stretched = (_levels(images) * scale - low * scale).trunc().clamp(0, 255)
    return _look_up(images, torch.where(high > low, stretched, _levels(images)))


def _equalize(images: Tensor, _strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    counts = _histogram(images)  # (n, 3, 256)
    last = 255 - (counts > 0).flip(2).to(torch.int8).argmax(2, keepdim=True)
    total = images.shape[2] * images.shape[3]
    step = (total - counts.gather(2, last)) // 255
    below = counts.cumsum(2) - counts
    table = (below + step // 2) // step.clamp(min=1)
    return _look_up(images, torch.where(step > 0, table.clamp(max=255).double(), _levels(images)))


def _invert(images: Tensor, _strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    return 255 - images


def _posterize(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    masks = [(0xFF << (8 - kept_bits(strength))) & 0xFF for strength in strengths]
    return images & _of_each(masks, images, torch.uint8)


def _solarize(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    threshold = _of_each([solarize_threshold(strength) for strength in strengths], images, torch.int16)
    return torch.where(images < threshold, images, 255 - images)


def _solarize_add(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    added = _of_each([solarize_added(strength) for strength in strengths], images, torch.int16)
    return torch.where(images < 128, (images + added).clamp(max=255).to(torch.uint8), images)


def _brightness(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    return _blend(torch.zeros_like(images), images, strengths)


def _contrast(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    mean = _grey(images).double().mean((1, 2, 3), keepdim=True)
    return _blend((mean + 0.5).floor().to(torch.uint8).expand_as(images), images, strengths)


# -- blends with another picture ---------------------------------------------------------------------------------------


def _color(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    return _blend(_grey(images).expand_as(images), images, strengths)


def _sharpness(images: Tensor, strengths: list[float], _fill: tuple[int, ...]) -> Tensor:
    kernel = torch.ones(3, 3, dtype=torch.float32, device=images.device)
    kernel[1, 1] = 5
    smooth = images.clone()  # the border stays as it is
    if min(images.shape[2:]) > 2:
        inner = F.conv2d(images.flatten(0, 1)[:, None].float(), kernel[None, None]) / 13
        smooth[:, :, 1:-1, 1:-1] = (inner + 0.5).to(torch.uint8).unflatten(0, images.shape[:2])[:, :, 0]
    return _blend(smooth, images, strengths)


def _blend(one: Tensor, other: Tensor, strengths: list[float]) -> Tensor:
    """From `one` to `other` and, where the factor is above 1, beyond; cut down to whole levels, as Pillow does."""
    factor = _of_each([enhancement(strength) for strength in strengths], other, torch.float32)
    return (one + factor * (other.float() - one.float())).clamp(0, 255).to(torch.uint8)


# -- warps -------------------------------------------------------------------------------------------------------------


def _rotate(images: Tensor, strengths: list[float], fill: tuple[int, ...]) -> Tensor:
    """About the centre."""
    height, width = images.shape[2:]
    matrices = []
    for strength in strengths:
        angle = -math.radians(30.0 * strength)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = width / 2, height / 2
        matrices.append((cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))
    return _warp(images, matrices, fill)


def _shear_x(images: Tensor, strengths: list[float], fill: tuple[int, ...]) -> Tensor:
    return _warp(images, [(1, 0.3 * strength, 0, 0, 1, 0) for strength in strengths], fill)


def _shear_y(images: Tensor, strengths: list[float], fill: tuple[int, ...]) -> Tensor:
    return _warp(images, [(1, 0, 0, 0.3 * strength, 1, 0) for strength in strengths], fill)


def _translate_x(images: Tensor, strengths: list[float], fill: tuple[int, ...]) -> Tensor:
    width = images.shape[3]
    return _warp(images, [(1, 0, 0.45 * strength * width, 0, 1, 0) for strength in strengths], fill)


def _translate_y(images: Tensor, strengths: list[float], fill: tuple[int, ...]) -> Tensor:
    height = images.shape[2]
    return _warp(images, [(1, 0, 0, 0, 1, 0.45 * strength * height) for strength in strengths], fill)


def _warp(images: Tensor, matrices: Sequence[Sequence[float]], fill: tuple[int, ...]) -> Tensor:
    """Pixel (x, y) is read at (a x + b y + c, d x + e y + f): bicubic with a = -1, edges repeated, as Pillow does."""
    count, channels, height, width = images.shape
    a, b, c, d, e, f = _to_device(matrices, images, torch.float64).T[..., None, None]  # (n, 1, 1) each
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    y = (torch.arange(height, device=images.device, dtype=torch.float64) + 0.5)[:, None]
    source_x, source_y = a * x + b * y + c, d * x + e * y + f  # (n, H, W)
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source_x, source_y = source_x - 0.5, source_y - 0.5
    first_x, first_y = source_x.floor(), source_y.floor()
    weights_x, weights_y = _bicubic_weights(source_x - first_x), _bicubic_weights(source_y - first_y)
    first_x, first_y = first_x.long() - 1, first_y.long() - 1
    flat = images.flatten(2).float()
    total = torch.zeros_like(flat)
    for row, weight_y in enumerate(weights_y):
        of_row = (first_y + row).clamp(0, height - 1) * width
        for column, weight_x in enumerate(weights_x):
            index = of_row + (first_x + column).clamp(0, width - 1)
            values = flat.gather(2, index.view(count, 1, -1).expand(-1, channels, -1))
            total += values * (weight_x * weight_y).view(count, 1, -1)
    # What is a whole level but for rounding must not fall to the one below.
    warped = (total + 1e-3).clamp(0, 255).to(torch.uint8).view_as(images)
    return torch.where(inside[:, None], warped, _to_device(fill, images, torch.uint8).view(1, -1, 1, 1))


def _bicubic_weights(d: Tensor) -> list[Tensor]:
    """Weights, float32, of the neighbours at -1, 0, 1, 2 for points between 0 and 1."""
    weights = (-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3)
    return [weight.float() for weight in weights]


# -- small parts -------------------------------------------------------------------------------------------------------


def _grey(images: Tensor) -> Tensor:
    """(n, 1, H, W) uint8: luma, in the integers in which Pillow reckons it."""
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)


def _histogram(images: Tensor) -> Tensor:
    """(n, 3, 256) int64: how often each level comes."""
    levels = images.flatten(2).long()
    return torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device).scatter_add_(
        2, levels, torch.ones_like(levels)
    )


def _levels(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device, dtype=torch.float64)


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """`images` with each level replaced from `table`, (n, 3, 256)."""
    found = table.to(torch.uint8).gather(2, images.flatten(2).long())
    return found.view_as(images)


def _of_each(values: list[float], images: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 1, 1, 1): a value of each sample."""
    return _to_device(values, images, dtype)[:, None, None, None]


def _to_device(values: Sequence, images: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    tensor = torch.from_numpy(np.asarray(values)).to(dtype)
    # From page-locked memory the host does not wait for the copy.
    return tensor.pin_memory().to(images.device, non_blocking=True) if images.is_cuda else tensor


DEVICE_OPERATIONS: dict[str, Work] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
}
"""(images (n, 3, H, W) uint8, strength of each, fill) -> the same shape. Names and strengths as in `augment.py`."""
