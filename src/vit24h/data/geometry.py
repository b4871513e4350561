"""Shear and translation of a picture: bicubic, as Pillow's `Image.transform` does them, in a fraction of its time.

Both move pixels along one axis only, so four neighbours in a line make a pixel, and whole stretches of rows or columns
move by the same number of pixels. Pillow's general code reads sixteen neighbours of each pixel by itself.

About the corner, not the centre, as in RandAugment of timm. Must not know: what draws the amounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch


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
    return _move_x(pixels, np.array([by]), fill)


def translate_y(pixels: np.ndarray, by: float, fill: tuple[int, ...]) -> np.ndarray:
    """Pixel (x, y) is read at (x, y + by). As `shear_x`."""
    return _move_y(pixels, np.array([by]), fill)


def _move_x(pixels: np.ndarray, offsets: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Row y is read `offsets[y]` pixels to the right; one offset is for all rows."""
    height, width, _ = pixels.shape
    whole, reach = _whole(offsets, width)
    padded = np.empty((height, width + 2 * reach, 3), np.uint8)
    padded[:, reach : reach + width] = pixels
    # Only two pixels beyond an edge are ever neighbours of what stays; what lies further out is filled in the end.
    padded[:, reach - 2 : reach] = pixels[:, :1]
    padded[:, reach + width : reach + width + 2] = pixels[:, -1:]
    # What is read at x - 1 … x + 2 are four slices, the same of each row.
    taps = np.empty((height, width + 3, 3), np.float32)
    for rows, first in _runs(whole + reach - 1):
        taps[rows] = padded[rows, first : first + width + 3]
    flat = taps.reshape(height, -1)
    neighbours = [flat[:, 3 * tap : 3 * (tap + width)] for tap in range(4)]
    levels = _weighted(neighbours, _bicubic_weights(offsets - whole)[:, :, None])
    _fill_outside(levels, _thrice(width), offsets[:, None], width, fill)
    return levels.reshape(pixels.shape)


def _move_y(pixels: np.ndarray, offsets: np.ndarray, fill: tuple[int, ...]) -> np.ndarray:
    """Column x is read `offsets[x]` pixels further down. As `_move_x`, with the axes exchanged."""
    height, width, _ = pixels.shape
    whole, reach = _whole(offsets, height)
    padded = np.empty((height + 2 * reach, width, 3), np.uint8)
    padded[reach : reach + height] = pixels
    padded[reach - 2 : reach] = pixels[:1]
    padded[reach + height : reach + height + 2] = pixels[-1:]
    taps = np.empty((height + 3, width, 3), np.float32)
    for columns, first in _runs(whole + reach - 1):
        taps[:, columns] = padded[first : first + height + 3, columns]
    flat = taps.reshape(height + 3, -1)
    neighbours = [flat[tap : tap + height] for tap in range(4)]
    levels = _weighted(neighbours, _for_channels(_bicubic_weights(offsets - whole))[:, None])
    _fill_outside(levels, np.arange(height, dtype=np.int16)[:, None], _for_channels(offsets), height, fill)
    return levels.reshape(pixels.shape)


def _whole(offsets: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """Offsets in whole pixels, those that lead out of the picture cut short; and how far beyond its edges they read."""
    whole = np.floor(offsets).clip(-length - 1, length + 1).astype(np.int64)
    return whole, int(abs(whole).max()) + 2


def _runs(firsts: np.ndarray) -> Iterator[tuple[slice, int]]:
    """(where, value) of the stretches of equal neighbours; everywhere, if there is but one value."""
    if len(firsts) == 1:
        yield slice(None), int(firsts[0])
        return
    borders = [0, *(np.flatnonzero(firsts[1:] != firsts[:-1]) + 1).tolist(), len(firsts)]
    yield from zip(map(slice, borders[:-1], borders[1:]), firsts[borders[:-1]].tolist(), strict=True)


def _weighted(neighbours: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Sum of four neighbours times their weights: uint8 (H, W · 3), cut down to whole levels as Pillow does it."""
    total = torch.from_numpy(neighbours[0] * weights[0])
    for neighbour, weight in zip(neighbours[1:], weights[1:], strict=True):
        total.addcmul_(torch.from_numpy(neighbour), torch.from_numpy(weight))  # in one go, which numpy cannot
    levels = total.numpy()
    levels += np.float32(1e-3)  # what is a whole level but for float32's rounding must not fall to the one below
    return levels.clip(0, 255, out=levels).astype(np.uint8)


def _fill_outside(levels: np.ndarray, at: np.ndarray, offsets: np.ndarray, length: int, fill: tuple[int, ...]) -> None:
    """Give `levels` (H, W · 3) the colour `fill` where the pixel at index `at` is read from beyond 0 … `length`."""
    # In whole numbers, and without a branch for each pixel: that much quicker than a mask.
    first, last = (np.ceil(border - 0.5 - offsets).clip(0, length).astype(np.int16) for border in (0, length))
    inside = ((at >= first) & (at < last)).view(np.uint8)
    levels *= inside
    levels += (inside ^ 1) * _row_of(fill, levels.shape[1] // 3)


def _for_channels(of_columns: np.ndarray) -> np.ndarray:
    """(…, W) to (…, W · 3), each value for the three channels of its column; one value is for all and stays one."""
    return of_columns if of_columns.shape[-1] == 1 else of_columns.repeat(3, axis=-1)


@cache
def _thrice(width: int) -> np.ndarray:
    """(W · 3,): the column that each number of a row of pixels belongs to."""
    return np.repeat(np.arange(width, dtype=np.int16), 3)


@cache
def _row_of(colour: tuple[int, ...], width: int) -> np.ndarray:
    return np.tile(np.array(colour, np.uint8), width)


# Of 1, d, d², d³.
_CUBICS = np.array([[0, -1, 2, -1], [1, 0, -2, 1], [0, 1, 1, -1], [0, 0, -1, 1]], float)


def _bicubic_weights(fraction: np.ndarray) -> np.ndarray:
    """(4, N) float32: weights of the neighbours at -1, 0, 1, 2 for points between 0 and 1 (a = -1, Pillow's)."""
    square = fraction * fraction
    return (_CUBICS @ np.array([np.ones_like(fraction), fraction, square, square * fraction])).astype(np.float32)
