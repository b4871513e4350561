"""What happens to one image on the CPU: crop, flip, RandAugment in training; resize and centre crop in evaluation.

Pictures of any size go in, and uint8 arrays (H, W, 3) of the size asked for come out. Every random number is drawn
from the generator that is handed in. What is drawn (`draw_…`) is kept apart from what it does to pixels, so that the
same draws can be carried out elsewhere (`device_randaugment.py`).

Must not know: files, labels, order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as torch_functional
from PIL import Image, ImageEnhance
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vit24h.config import AugmentationConfig
from vit24h.data.decode import Picture
from vit24h.data.geometry import shear_x, shear_y, translate_x, translate_y

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""


class Operation(NamedTuple):
    """One operation of RandAugment: what, and how strong."""

    name: str  # a key of OPERATIONS
    strength: float  # -1 to 1: magnitude ÷ 10; the sign is the direction, where an operation has one


class Draws(NamedTuple):
    """All that is random about a training sample."""

    crop: Box  # of the picture at its full size
    flip: bool
    operations: list[Operation]  # one after another
    erasing_box: Box  # of the crop


class TrainTransform:
    """Random resized crop, horizontal flip, RandAugment, as the paper's recipe has them (METHOD.md, recipe).

    Args:
        augmentation: probabilities and ranges; whether flip and RandAugment are left to the device.
        mean: of the normalisation, in units of full scale; what geometric operations move in is filled with it.
        scaled_decoding: decode a picture only as finely as its crops need it, and resample with torch's integer
            kernel; False: the whole picture, resampled by Pillow, pixel for pixel what the paper's code made of it.
    """

    def __init__(
        self,
        augmentation: AugmentationConfig,
        mean: tuple[float, float, float],
        *,
        scaled_decoding: bool,
    ):
        self._augmentation = augmentation
        self._fill = tuple(round(255 * channel) for channel in mean)
        self._scaled_decoding = scaled_decoding
        self.on_device = augmentation.randaugment_on == "device"

    def crops(self, picture: Picture, image_size: int, rngs: Sequence[np.random.Generator]) -> np.ndarray:
        """One crop of a picture for each generator: uint8 (crops, image_size, image_size, 3); it is decoded once."""
        draws = [self.draw(picture.width, picture.height, image_size, rng) for rng in rngs]
        shrink = self.shrink(picture, draws, image_size)
        pixels = picture.pixels(shrink)
        crops = np.stack([self.render(pixels, shrink, drawn, image_size) for drawn in draws])
        self.randaugment(crops, draws)
        return crops

    def draw(self, width: int, height: int, image_size: int, rng: np.random.Generator) -> Draws:
        """What happens to a sample of a picture of `width` × `height` pixels."""
        augmentation = self._augmentation
        return Draws(
            crop=draw_crop(augmentation, width, height, rng),
            flip=bool(rng.random() < augmentation.flip_probability),
            operations=draw_operations(augmentation, rng),
            erasing_box=draw_erasing_box(augmentation, image_size, rng),
        )

    def shrink(self, picture: Picture, draws: Sequence[Draws], image_size: int) -> int:
        """By how much decoding may divide the picture's size so that none of its crops has to be enlarged for it."""
        if not self._scaled_decoding:
            return 1
        return picture.shrink_for(min(min(drawn.crop[2:]) for drawn in draws) / image_size)

    def render(self, pixels: np.ndarray, shrink: int, draws: Draws, image_size: int) -> np.ndarray:
        """The crop that was drawn, flipped if that was drawn, of a picture decoded at 1 ÷ `shrink`.

        Returns:
            uint8 (image_size, image_size, 3), before RandAugment.
        """
        resized = _resized_crop if self._scaled_decoding else _resized_crop_as_pillow
        crop = resized(pixels, draws.crop, shrink, image_size)
        return _flipped(crop) if draws.flip and not self.on_device else crop

    def randaugment(self, crops: np.ndarray, draws: Sequence[Draws]) -> None:
        """Change crops (N, H, W, 3), in place, by the operations that were drawn for each; not if the device does it.

        One kind of operation after another: its code and tables are then at hand in the processor's caches. Done crop
        by crop, each right after it was resampled, small ones take twice the time.
        """
        if self.on_device:
            return
        for turn in range(self._augmentation.randaugment_ops):
            due = [(drawn.operations[turn], crop) for crop, drawn in enumerate(draws) if turn < len(drawn.operations)]
            for operation, crop in sorted(due):
                crops[crop] = apply_operation(crops[crop], operation, self._fill)


class EvalTransform:
    """Resize the short side, bicubic, and crop the centre: 256 and 224 px in the paper.

    Args:
        image_size: of the crop, pixels.
        resize_ratio: short side before the crop ÷ crop.
    """

    def __init__(self, image_size: int, resize_ratio: float):
        self.image_size = image_size
        self._short_side = round(image_size * resize_ratio)

    def __call__(self, picture: Picture) -> np.ndarray:
        """The centre of a picture: uint8 (image_size, image_size, 3). Decoded in full, resampled by Pillow, always."""
        image = F.resize(Image.fromarray(picture.pixels()), [self._short_side], interpolation=InterpolationMode.BICUBIC)
        return np.asarray(F.center_crop(image, [self.image_size, self.image_size]))


def _resized_crop(pixels: np.ndarray, crop: Box, shrink: int, image_size: int) -> np.ndarray:
    """A crop of a picture, resampled: bicubic with antialiasing, which is Pillow's, within a level or two.

    Args:
        pixels: of the picture decoded at 1 ÷ `shrink` of its size.
        crop: of the picture at its full size.
    """
    top, left, height, width = crop
    if shrink == 1:
        # Torch's kernel does the same sums as Pillow in a fraction of the time, but knows only whole pixels.
        part = torch.from_numpy(pixels[top : top + height, left : left + width].copy()).permute(2, 0, 1)[None]
        size = (image_size, image_size)
        part = torch_functional.interpolate(part, size=size, mode="bicubic", antialias=True, align_corners=False)
        return part[0].permute(1, 2, 0).numpy()
    x, y = left / shrink, top / shrink
    first_x, first_y = int(x), int(y)
    last_x, last_y = math.ceil(x + width / shrink), math.ceil(y + height / shrink)
    part = Image.fromarray(pixels[first_y:last_y, first_x:last_x])
    x, y = x - first_x, y - first_y
    box = (x, y, min(x + width / shrink, part.width), min(y + height / shrink, part.height))
    return np.array(part.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box))


def _resized_crop_as_pillow(pixels: np.ndarray, crop: Box, _shrink: int, image_size: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    image = F.resized_crop(image, *crop, size=[image_size, image_size], interpolation=InterpolationMode.BICUBIC)
    return np.array(image)


def _flipped(pixels: np.ndarray) -> np.ndarray:
    """Left to right. By torch, which turns whole vectors of pixels about where numpy goes through them one by one."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].flip(-1)[0].permute(1, 2, 0).numpy()


def draw_crop(augmentation: AugmentationConfig, width: int, height: int, rng: np.random.Generator) -> Box:
    """Where to crop an image of `width` × `height`: torchvision's RandomResizedCrop.

    Area and aspect ratio are drawn until the box fits, ten times at most; failing that it is the largest centred box
    whose aspect ratio is allowed.
    """
    low, high = augmentation.crop_ratio
    for _ in range(10):
        area = width * height * _uniform(*augmentation.crop_scale, rng)
        ratio = math.exp(_uniform(math.log(low), math.log(high), rng))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = _below(height - crop_height + 1, rng)
            left = _below(width - crop_width + 1, rng)
            return top, left, crop_height, crop_width
    ratio = min(max(width / height, low), high)
    crop_width, crop_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def draw_erasing_box(augmentation: AugmentationConfig, image_size: int, rng: np.random.Generator) -> Box:
    """Which box of a crop random erasing fills with noise; (0, 0, 0, 0) for none (Zhong et al., arXiv 1708.04896)."""
    if rng.random() < augmentation.erasing_probability:
        low, high = augmentation.erasing_ratio
        for _ in range(10):
            area = image_size**2 * _uniform(*augmentation.erasing_scale, rng)
            ratio = math.exp(_uniform(math.log(low), math.log(high), rng))
            height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if height < image_size and width < image_size:
                return _below(image_size - height + 1, rng), _below(image_size - width + 1, rng), height, width
    return 0, 0, 0, 0


def draw_operations(augmentation: AugmentationConfig, rng: np.random.Generator) -> list[Operation]:
    """The operations that RandAugment applies to an image, in order (METHOD.md: `rand-m9-mstd0.5-inc1`).

    `randaugment_ops` are drawn with replacement from the 15, each is kept with `randaugment_probability`, and each
    kept one gets a magnitude and a direction of its own.
    """
    operations = []
    for _ in range(augmentation.randaugment_ops):
        if rng.random() < augmentation.randaugment_probability:
            name = _NAMES[_below(len(_NAMES), rng)]
            deviation = augmentation.randaugment_magnitude_std * rng.standard_normal()
            strength = min(max(augmentation.randaugment_magnitude + deviation, 0.0), 10.0) / 10.0
            operations.append(Operation(name, strength if rng.random() < 0.5 else -strength))
    return operations


# A generator's own `uniform` and `integers` take as long as all the rest of a draw.


def _uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return low + (high - low) * rng.random()


def _below(count: int, rng: np.random.Generator) -> int:
    """0 to `count` - 1, each equally likely but for some 2⁻⁵³."""
    return int(count * rng.random())


def apply_operation(pixels: np.ndarray, operation: Operation, fill: tuple[int, ...]) -> np.ndarray:
    """A picture after one operation: uint8 (H, W, 3), a new array; `fill` is the colour (0 to 255) of what moves in."""
    return OPERATIONS[operation.name](pixels, operation.strength, fill)


# -- how strong an operation is, from its strength, -1 to 1 -----------------------------------------------------------
#
# "Increasing" is RandAugment's variant in which a larger magnitude always means a larger change. Ranges are those of
# METHOD.md's recipe, which are not the ranges of torchvision's RandAugment.


def kept_bits(strength: float) -> int:
    """Of posterize: 0 to 4. At full strength no bit is kept and the picture is black, which Pillow refuses to draw."""
    return 4 - int(abs(strength) * 4)


def solarize_threshold(strength: float) -> int:
    """Levels from it on, 0 to 256, are inverted."""
    return 256 - int(abs(strength) * 256)


def solarize_added(strength: float) -> int:
    """What is added to levels below 128."""
    return min(128, int(abs(strength) * 110))


def enhancement(strength: float) -> float:
    """Factor around 1, which changes nothing: 0.1 to 1.9."""
    return max(0.1, 1.0 + 0.9 * strength)


# -- the operations: (pixels, strength from -1 to 1, fill) -> pixels --------------------------------------------------
#
# Arithmetic on levels in numpy: of whole arrays, in 8 bits or single precision, it is quicker than a look-up for each.
# Histograms, luma and rotation in Pillow, which does them well.


def _autocontrast(pixels: np.ndarray, _strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    low, high = (
        extreme(extreme(pixels, axis=0), axis=0).astype(float)[:, None]  # rows first: they lie one after another
        for extreme in (np.min, np.max)
    )
    scale = 255 / np.where(high > low, high - low, 255)
    offset = np.where(high > low, -low * scale, 0)
    return _through_tables(pixels, np.clip(np.arange(256) * scale + offset, 0, 255))


def _equalize(pixels: np.ndarray, _strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    counts = np.array(Image.fromarray(pixels).histogram()).reshape(3, 256)
    highest = 255 - np.argmax(counts[:, ::-1] > 0, axis=1)
    step = (counts.sum(1) - counts[range(3), highest])[:, None] // 255
    below = np.cumsum(counts, axis=1) - counts
    tables = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    return _through_tables(pixels, np.where(step > 0, tables, np.arange(256)))


def _through_tables(pixels: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Each channel's levels replaced from its row of (3, 256), whose values are cut down to whole ones."""
    rows = pixels.reshape(len(pixels), -1)  # long ones: an operation on three numbers at a time is slow
    places = rows + np.tile(np.array([0, 256, 512], np.uint16), pixels.shape[1])
    return tables.astype(np.uint8).ravel().take(places).reshape(pixels.shape)


def _invert(pixels: np.ndarray, _strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    return ~pixels


def _posterize(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    return pixels & np.uint8(0xFF << (8 - kept_bits(strength)) & 0xFF)


def _solarize(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    threshold = solarize_threshold(strength)
    if threshold > 255:
        return pixels.copy()
    return pixels ^ np.negative((pixels >= threshold).view(np.uint8))  # -1 is all bits


def _solarize_add(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    return pixels + (pixels < 128).view(np.uint8) * np.uint8(solarize_added(strength))


def _brightness(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    return _blend(np.float32(0), pixels.astype(np.float32), strength)


def _contrast(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    mean = np.asarray(Image.fromarray(pixels).convert("L")).mean()
    return _blend(np.float32(int(mean + 0.5)), pixels.astype(np.float32), strength)


def _sharpness(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    levels = pixels.reshape(len(pixels), -1).astype(np.uint16)
    smooth = levels.astype(np.float32)
    if min(pixels.shape[:2]) > 2:  # pixels at the edge stay as they are
        rows = levels[:-2] + levels[1:-1] + levels[2:]
        square = rows[:, :-6] + rows[:, 3:-3] + rows[:, 6:]
        square += 4 * levels[1:-1, 3:-3] + np.uint16(6)  # Pillow's SMOOTH: the pixel itself counts five times; rounded
        smooth[1:-1, 3:-3] = square // np.uint16(13)
    return _blend(smooth, levels.astype(np.float32), strength).reshape(pixels.shape)


def _blend(plain: np.ndarray | np.float32, levels: np.ndarray, strength: float) -> np.ndarray:
    """From a plainer picture to `levels` and, where the factor is above 1, beyond; in single precision, as Pillow.

    Args:
        levels: float32; overwritten.
    """
    levels -= plain
    levels *= np.float32(enhancement(strength))
    levels += plain
    return levels.clip(0, 255, out=levels).astype(np.uint8)


def _color(pixels: np.ndarray, strength: float, _fill: tuple[int, ...]) -> np.ndarray:
    return np.asarray(ImageEnhance.Color(Image.fromarray(pixels)).enhance(enhancement(strength)))


def _rotate(pixels: np.ndarray, strength: float, fill: tuple[int, ...]) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.rotate(30.0 * strength, resample=Image.Resampling.BICUBIC, fillcolor=fill))


def _shear_x(pixels: np.ndarray, strength: float, fill: tuple[int, ...]) -> np.ndarray:
    return shear_x(pixels, 0.3 * strength, fill)


def _shear_y(pixels: np.ndarray, strength: float, fill: tuple[int, ...]) -> np.ndarray:
    return shear_y(pixels, 0.3 * strength, fill)


def _translate_x(pixels: np.ndarray, strength: float, fill: tuple[int, ...]) -> np.ndarray:
    return translate_x(pixels, 0.45 * strength * pixels.shape[1], fill)


def _translate_y(pixels: np.ndarray, strength: float, fill: tuple[int, ...]) -> np.ndarray:
    return translate_y(pixels, 0.45 * strength * pixels.shape[0], fill)


OPERATIONS: dict[str, Callable[[np.ndarray, float, tuple[int, ...]], np.ndarray]] = {
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
