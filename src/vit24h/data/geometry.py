"""Shear and translation of a picture: bicubic, as Pillow's `Image.transform` does them, in a fraction of its time.

Both move pixels along one axis only, so four neighbours in a line make a pixel, and whole stretches of rows or columns
move by the same number of pixels. Pillow's general code reads sixteen neighbours of each pixel by itself.

About the corner, not the centre, as in RandAugment of timm. Must not know: what draws the amounts.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def shear_x(pixels: np.ndarray, factor: float, fill: tuple[int, ...]) -> np.ndarray:
    """Pixel (x, y) is read at (x + factor · y, y).

    Args:
        pixels: uint8 (H, W, 3).
        fill: colour of what moves in, 0 to 255.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    return _move_x(pixels, factor * (np.arange(pixels.shape[0]) + 0.5), fill)


def shear_y(pixels: np.ndarray, factor: float, fill: tuple[int, ...]) -> np.ndarray:
    """Pixel (x, y) is read at (x, y + factor · x). As `shear_x`."""
    return _move_y(pixels, factor * (np.arange(pixels.shape[1]) + 0.5), fill)


def translate_x(pixels: np.ndarray, by: float, fill: tuple[int, ...]) -> np.ndarray:
    """Pixel (x, y) is read at (x + by, y). As `shear_x`."""
    return _move_x(pixels, np.full(pixels.shape[0], by), fill)


def translate_y(pixels: np.ndarray, by: float, fill: tuple[int, ...]) -> np.ndarray:
    """Pixel (x, y) is read at (x, y + by). As `shear_x`."""
    return _move_y(pixels, np.full(pixels.shape[1], by), fill)


def _move_x(pixels: np.ndarray, offsets: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Row y is read `offsets[y]` pixels to the right."""
    height, width, _ = pixels.shape
    whole = np.floor(offsets).astype(np.int64)
    taps = np.empty((height, width + 3, 3), np.uint8)  # what is read at x - 1 … x + 2, the same four slices of each row
    for begin, end in _runs(whole):
        _copy_clamped(taps[begin:end].swapaxes(0, 1), pixels[begin:end].swapaxes(0, 1), whole[begin] - 1)
    weights = _bicubic_weights(offsets - whole)[:, :, None]  # (4, H, 1)
    flat = taps.reshape(height, -1).astype(np.float32)
    moved = weights[0] * flat[:, : 3 * width]
    for tap in (1, 2, 3):
        moved += weights[tap] * flat[:, 3 * tap : 3 * (tap + width)]
    result = _as_levels(moved).reshape(pixels.shape)
    centres = np.arange(width) + 0.5 + offsets[:, None]
    result[(centres < 0) | (centres >= width)] = fill
    return result


def _move_y(pixels: np.ndarray, offsets: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Column x is read `offsets[x]` pixels further down."""
    height, width, _ = pixels.shape
    whole = np.floor(offsets).astype(np.int64)
    taps = np.empty((height + 3, width, 3), np.uint8)
    for begin, end in _runs(whole):
        _copy_clamped(taps[:, begin:end], pixels[:, begin:end], whole[begin] - 1)
    weights = np.repeat(_bicubic_weights(offsets - whole), 3, axis=1)  # (4, W · 3)
    flat = taps.reshape(height + 3, -1).astype(np.float32)
    moved = weights[0] * flat[:height]
    for tap in (1, 2, 3):
        moved += weights[tap] * flat[tap : tap + height]
    result = _as_levels(moved).reshape(pixels.shape)
    centres = np.arange(height)[:, None] + 0.5 + offsets
    result[(centres < 0) | (centres >= height)] = fill
    return result


def _runs(values: np.ndarray) -> pairwise:
    """(begin, end) of the stretches of equal neighbours."""
    return pairwise([0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)])


def _copy_clamped(target: np.ndarray, source: np.ndarray, begin: int) -> None:
    """target[i] = source[begin + i] along the first axis; beyond its ends the source goes on as it ends."""
    count, length = len(target), len(source)
    first, last = min(max(-begin, 0), count), max(min(length - begin, count), 0)
    target[:first] = source[0]
    if first < last:
        target[first:last] = source[begin + first : begin + last]
    target[max(last, 0) :] = source[-1]


def _bicubic_weights(fraction: np.ndarray) -> np.ndarray:
    """(4, N) float32: weights of the neighbours at -1, 0, 1, 2 for a point between 0 and 1 (a = -1, Pillow's)."""
    d = fraction
    return np.stack(
        [-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) + d**3],
    ).astype(np.float32)


def _as_levels(values: np.ndarray) -> np.ndarray:
    """To 0 … 255, cut down to whole levels as Pillow does it."""
    # What is a whole level but for float32's rounding must not fall to the one below.
    return np.clip(values + np.float32(1e-3), 0, 255).astype(np.uint8)
