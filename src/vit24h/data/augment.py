"""What happens to one image on the CPU: crop, flip, RandAugment in training; resize and centre crop in evaluation.

Pictures go in as PIL images of any size and come out as uint8 arrays (H, W, 3) of the size asked for. Every random
number is drawn from the generator that is handed in. What is drawn (`draw_…`) is kept apart from what it does to
pixels, so that the same draws can be carried out elsewhere.

Must not know: files, labels, order, torch tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vit24h.config import AugmentationConfig

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


class TrainTransform:
    """Random resized crop, horizontal flip, RandAugment, as the paper's recipe has them (METHOD.md, recipe).

    Args:
        augmentation: probabilities and ranges.
        mean: of the normalisation, in units of full scale; what geometric operations move in is filled with it.
    """

    def __init__(self, augmentation: AugmentationConfig, mean: tuple[float, float, float]):
        self._augmentation = augmentation
        self._fill = tuple(round(255 * channel) for channel in mean)

    def __call__(self, image: Image.Image, image_size: int, rng: np.random.Generator) -> np.ndarray:
        """One crop of an RGB picture: uint8 (image_size, image_size, 3)."""
        augmentation = self._augmentation
        crop = draw_crop(augmentation, image.width, image.height, rng)
        image = F.resized_crop(image, *crop, size=[image_size, image_size], interpolation=InterpolationMode.BICUBIC)
        if rng.random() < augmentation.flip_probability:
            image = F.horizontal_flip(image)
        for operation in draw_operations(augmentation, rng):
            image = apply_operation(image, operation, self._fill)
        return np.asarray(image)


class EvalTransform:
    """Resize the short side, bicubic, and crop the centre: 256 and 224 px in the paper.

    Args:
        image_size: of the crop, pixels.
        resize_ratio: short side before the crop ÷ crop.
    """

    def __init__(self, image_size: int, resize_ratio: float):
        self.image_size = image_size
        self._short_side = round(image_size * resize_ratio)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The centre of an RGB picture: uint8 (image_size, image_size, 3)."""
        image = F.resize(image, [self._short_side], interpolation=InterpolationMode.BICUBIC)
        return np.asarray(F.center_crop(image, [self.image_size, self.image_size]))


def draw_crop(augmentation: AugmentationConfig, width: int, height: int, rng: np.random.Generator) -> Box:
    """Where to crop an image of `width` × `height`: torchvision's RandomResizedCrop.

    Area and aspect ratio are drawn until the box fits, ten times at most; failing that it is the largest centred box
    whose aspect ratio is allowed.
    """
    low, high = augmentation.crop_ratio
    for _ in range(10):
        area = width * height * rng.uniform(*augmentation.crop_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    ratio = min(max(width / height, low), high)
    crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def draw_erasing_box(augmentation: AugmentationConfig, image_size: int, rng: np.random.Generator) -> Box:
    """Which box of a crop random erasing fills with noise; (0, 0, 0, 0) for none (Zhong et al., arXiv 1708.04896)."""
    if rng.random() < augmentation.erasing_probability:
        low, high = augmentation.erasing_ratio
        for _ in range(10):
            area = image_size**2 * rng.uniform(*augmentation.erasing_scale)
            ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < image_size and width < image_size:
                return (
                    int(rng.integers(image_size - height + 1)),
                    int(rng.integers(image_size - width + 1)),
                    height,
                    width,
                )
    return 0, 0, 0, 0


class Operation(NamedTuple):
    """One operation of RandAugment: what, and how strong."""

    name: str  # a key of OPERATIONS
    strength: float  # -1 to 1: magnitude ÷ 10; the sign is the direction, where an operation has one


def draw_operations(augmentation: AugmentationConfig, rng: np.random.Generator) -> list[Operation]:
    """The operations that RandAugment applies to an image, in order (METHOD.md: `rand-m9-mstd0.5-inc1`).

    `randaugment_ops` are drawn with replacement from the 15, each is kept with `randaugment_probability`, and each
    kept one gets a magnitude and a direction of its own.
    """
    operations = []
    for choice in rng.integers(len(OPERATIONS), size=augmentation.randaugment_ops):
        if rng.random() < augmentation.randaugment_probability:
            magnitude = rng.normal(augmentation.randaugment_magnitude, augmentation.randaugment_magnitude_std)
            strength = min(max(magnitude, 0.0), 10.0) / 10.0
            operations.append(Operation(_NAMES[choice], strength if rng.random() < 0.5 else -strength))
    return operations


def apply_operation(image: Image.Image, operation: Operation, fill: tuple[int, ...]) -> Image.Image:
    """An RGB picture after one operation, the same size; `fill` is the colour (0 to 255) of what moves in."""
    return OPERATIONS[operation.name](image, operation.strength, fill)


# -- the operations: (picture, strength from -1 to 1, fill) -> picture ------------------------------------------------
#
# "Increasing" is RandAugment's variant in which a larger magnitude always means a larger change. Ranges are those of
# METHOD.md's recipe, which are not the ranges of torchvision's RandAugment.


def _autocontrast(image: Image.Image, _strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.autocontrast(image)


def _equalize(image: Image.Image, _strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.equalize(image)


def _invert(image: Image.Image, _strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.invert(image)


def _posterize(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    bits = 4 - int(abs(strength) * 4)
    # At full strength no bit is kept, and the picture is black. Pillow and torchvision refuse to keep none.
    return F.posterize(image, bits) if bits else Image.new("RGB", image.size)


def _solarize(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.solarize(image, 256 - int(abs(strength) * 256))


def _solarize_add(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    added = min(128, int(abs(strength) * 110))
    return image.point([value + added if value < 128 else value for value in range(256)] * 3)


def _color(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.adjust_saturation(image, _enhancement(strength))


def _contrast(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.adjust_contrast(image, _enhancement(strength))


def _brightness(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.adjust_brightness(image, _enhancement(strength))


def _sharpness(image: Image.Image, strength: float, _fill: tuple[int, ...]) -> Image.Image:
    return F.adjust_sharpness(image, _enhancement(strength))


def _enhancement(strength: float) -> float:
    """Factor around 1, which changes nothing: 0.1 to 1.9."""
    return max(0.1, 1.0 + 0.9 * strength)


def _rotate(image: Image.Image, strength: float, fill: tuple[int, ...]) -> Image.Image:
    return F.rotate(image, 30.0 * strength, interpolation=InterpolationMode.BICUBIC, fill=list(fill))


def _shear_x(image: Image.Image, strength: float, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0.3 * strength, 0, 0, 1, 0), fill)


def _shear_y(image: Image.Image, strength: float, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * strength, 1, 0), fill)


def _translate_x(image: Image.Image, strength: float, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0), fill)


def _translate_y(image: Image.Image, strength: float, fill: tuple[int, ...]) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height), fill)


def _affine(image: Image.Image, output_to_input: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    """Pixel (x, y) is read at (a x + b y + c, d x + e y + f): about the corner, where torchvision's affine is about
    the centre."""
    return image.transform(
        image.size, Image.Transform.AFFINE, output_to_input, resample=Image.Resampling.BICUBIC, fillcolor=fill
    )


OPERATIONS: dict[str, Callable[[Image.Image, float, tuple[int, ...]], Image.Image]] = {
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
_NAMES = tuple(OPERATIONS)
