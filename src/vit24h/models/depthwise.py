"""What lies between the two linear layers of the locality feed-forward: h-swish, depth-wise 3×3 convolution, h-swish.

On tokens, in three ways that compute the same from the same weight: `conv`, PyTorch's convolution on a channels-last
view; `shifted`, nine shifted multiply-adds, which a compiler makes one kernel of; `triton`, kernels of our own, in
which both h-swishes cost no pass through memory (on a GPU; elsewhere it is `shifted`). `benchmarks/step.py` shows what
each costs. Must not know: the model around it, data, training.

Memory traffic of `triton`, in passes over one tensor of hidden tokens: 2 forward, 6 backward. Two linear layers with
GELU between, as in DeiT, cost 2 and 3.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vit24h.errors import UserError
from vit24h.models.position import Grid

Depthwise = Literal["conv", "shifted", "triton"]


def swish_convolve_swish(hidden: Tensor, weight: Tensor, grid: Grid, how: Depthwise) -> Tensor:
    """h-swish(depth-wise 3×3(h-swish(hidden))), zeros beyond the border.

    Args:
        hidden: tokens (B, rows · columns, C), row by row.
        weight: (C, 1, 3, 3), as `nn.Conv2d` has it; of another type than `hidden` under autocast.

    Returns:
        tokens of `hidden`'s shape and type.
    """
    if how == "conv":
        return F.hardswish(convolve(F.hardswish(hidden), weight, grid))
    if how == "shifted" or not _runs_kernels(hidden):
        return F.hardswish(convolve_shifted(F.hardswish(hidden), weight, grid)).to(hidden.dtype)
    return torch.ops.vit24h.swish_convolve_swish(hidden.contiguous(), weight.flatten(1), *grid)


def convolve(tokens: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """The depth-wise 3×3 by PyTorch's convolution; shapes as above."""
    feature_map = F.conv2d(map_of(tokens, grid), weight, padding=1, groups=len(weight))
    return tokens_of(feature_map)


def convolve_shifted(tokens: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """The depth-wise 3×3 as a sum of nine shifted products; in float32 at least, whatever the tokens' type."""
    rows, columns = grid
    padded = F.pad(tokens.unflatten(1, grid), (0, 0, 1, 1, 1, 1))  # (B, rows + 2, columns + 2, C)
    total: Any = 0
    for down in range(3):
        for right in range(3):
            neighbour = padded[:, down : down + rows, right : right + columns]
            total = total + neighbour * weight[:, 0, down, right]
    return total.flatten(1, 2)


def map_of(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, rows · columns, C) seen as a feature map (B, C, rows, columns): a channels-last view, no copy."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def tokens_of(feature_map: Tensor) -> Tensor:
    """The way back: a feature map (B, C, rows, columns) seen as tokens (B, rows · columns, C)."""
    return feature_map.flatten(2).transpose(1, 2)


def load_kernels() -> None:
    """Make `triton` available: to be called before it is used.

    Raises:
        UserError: there is no Triton, as outside of Linux on x86-64.
    """
    try:
        import vit24h.models.depthwise_kernels  # noqa: F401 - it registers the operation
    except ImportError as error:
        raise UserError(
            f"runtime.depthwise: triton cannot be imported ({error}); it comes with torch on Linux: set conv or shifted"
        ) from error


def _runs_kernels(tensor: Tensor) -> bool:
    return tensor.is_cuda or (_INTERPRETED and tensor.device.type == "cpu")


_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: its kernels as Python, for tests
