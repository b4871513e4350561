"""Triton kernels for h-swish, depth-wise 3×3 convolution, h-swish on tokens, forward and backward.

An operation of its own to PyTorch, opaque to the compiler. Sums are in float32 (float64 for float64 tokens), in an
order that does not change: no atomic additions. Where it is used: `depthwise.py`.

Names, for one image and channel: u the input, a = h(u), z = a convolved, y = h(z); h is h-swish. The backward pass
keeps u alone: the first kernel computes z again, gives dz = dy · h'(z) and the weight's gradient, the second
du = h'(u) · (dz convolved with the weight turned round).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A program's share. On sm_90 no kernel spills registers at this size, and loads are of 16 bytes; not yet tuned.
_CHANNELS = 64
_TOKENS = 16  # of one image
_PARTS = 256  # about so many partial sums make a weight gradient: at most 14 MB of them for DeiT-S


@torch.library.custom_op("vit24h::swish_convolve_swish", mutates_args=())
def swish_convolve_swish(u: Tensor, weight: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens (B, rows · columns, C) and weight (C, 9), both contiguous, to tokens of the same shape and type."""
    y = torch.empty_like(u)
    tiles, channel_tiles = triton.cdiv(rows * columns, _TOKENS), triton.cdiv(u.shape[2], _CHANNELS)
    _forward[(len(u) * tiles, channel_tiles)](
        u, weight, y, rows, columns, u.shape[2], tiles, _sum_type(u), _TOKENS, _CHANNELS
    )
    return y


@swish_convolve_swish.register_fake
def _(u: Tensor, _weight: Tensor, _rows: int, _columns: int) -> Tensor:
    return torch.empty_like(u)


@torch.library.custom_op("vit24h::swish_convolve_swish_backward", mutates_args=())
def _gradients(dy: Tensor, u: Tensor, weight: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    images, tokens, channels = u.shape
    tiles, channel_tiles = triton.cdiv(tokens, _TOKENS), triton.cdiv(channels, _CHANNELS)
    in_group = triton.cdiv(images, min(images, max(1, _PARTS // tiles)))
    groups = triton.cdiv(images, in_group)
    dz, du = torch.empty_like(u), torch.empty_like(u)
    sum_type = torch.float64 if u.dtype == torch.float64 else torch.float32
    partial = torch.empty((groups * tiles, 9, channels), dtype=sum_type, device=u.device)
    shape = (rows, columns, channels, tiles, _sum_type(u), _TOKENS, _CHANNELS)
    _backward_of_sum[(groups * tiles, channel_tiles)](dy, u, weight, dz, partial, images, in_group, *shape)
    _backward_of_input[(images * tiles, channel_tiles)](dz, u, weight, du, *shape)
    return du, partial.sum(0).T.to(weight.dtype).contiguous()


@_gradients.register_fake
def _(_dy: Tensor, u: Tensor, weight: Tensor, _rows: int, _columns: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(weight)


def _backward(context, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
    u, weight = context.saved_tensors
    du, dweight = _gradients(dy.contiguous(), u, weight, context.rows, context.columns)
    return du, dweight, None, None


def _keep(ctx, inputs, output: Tensor) -> None:  # noqa: ARG001 - PyTorch calls it with these names
    u, weight, ctx.rows, ctx.columns = inputs
    ctx.save_for_backward(u, weight)


swish_convolve_swish.register_autograd(_backward, setup_context=_keep)


def _sum_type(tensor: Tensor) -> tl.constexpr:
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@triton.jit
def _swish(x):
    return x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0


@triton.jit
def _swish_slope(x):
    """PyTorch's choice at the corners: 0 up to -3, 1 from 3 on."""
    return tl.where(x <= -3.0, 0.0, tl.where(x < 3.0, x / 3.0 + 0.5, 1.0))


@triton.jit
def _forward(
    u, weight, y, rows, columns, channels, tiles,
    sum_type: tl.constexpr, block_tokens: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    token = tile * block_tokens + tl.arange(0, block_tokens)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    first = u + image.to(tl.int64) * rows * columns * channels
    known = channel < channels
    z = _convolved(
        first, weight, token, channel, known, rows, columns, channels, sum_type, block_tokens, block_channels
    )
    here = token[:, None] * channels + channel[None, :]
    inside = (token < rows * columns)[:, None] & known[None, :]
    tl.store(y + image.to(tl.int64) * rows * columns * channels + here, _swish(z), mask=inside)


@triton.jit
def _convolved(
    first, weight, token, channel, known, rows, columns, channels,
    sum_type: tl.constexpr, block_tokens: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    """z (block_tokens, block_channels) of one image, whose u begins at `first`; where not `known`, nothing is read."""
    row, column = token // columns, token % columns
    z = tl.zeros((block_tokens, block_channels), dtype=sum_type)
    for k in tl.static_range(9):
        there_row, there_column = row + (k // 3 - 1), column + (k % 3 - 1)
        inside = (there_row >= 0) & (there_row < rows) & (there_column >= 0) & (there_column < columns)
        there = (there_row * columns + there_column)[:, None] * channels + channel[None, :]
        a = _swish(tl.load(first + there, mask=inside[:, None] & known[None, :], other=0.0).to(sum_type))
        z += a * tl.load(weight + channel * 9 + k, mask=known, other=0.0).to(sum_type)[None, :]
    return z


@triton.jit
def _backward_of_sum(
    dy, u, weight, dz, partial, images, in_group: tl.constexpr, rows, columns, channels, tiles,
    sum_type: tl.constexpr, block_tokens: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    """dz of a group of images, and the sum over the group and this tile of dz · a for the nine weights."""
    group, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    token = tile * block_tokens + tl.arange(0, block_tokens)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    row, column = token // columns, token % columns
    known = channel < channels
    here = token[:, None] * channels + channel[None, :]
    inside = (token < rows * columns)[:, None] & known[None, :]
    which = tl.arange(0, 16)  # the nine weights, and what makes them a power of two
    sums = tl.zeros((16, block_channels), dtype=sum_type)
    for number in range(in_group):
        image = group * in_group + number
        exists = image < images  # the last group may be smaller
        start = image.to(tl.int64) * rows * columns * channels
        first = u + start
        these = known & exists
        z = _convolved(
            first, weight, token, channel, these, rows, columns, channels, sum_type, block_tokens, block_channels
        )
        gradient = tl.load(dy + start + here, mask=inside & exists, other=0.0).to(sum_type) * _swish_slope(z)
        tl.store(dz + start + here, gradient, mask=inside & exists)
        for k in tl.static_range(9):
            there_row, there_column = row + (k // 3 - 1), column + (k % 3 - 1)
            reached = (there_row >= 0) & (there_row < rows) & (there_column >= 0) & (there_column < columns)
            there = (there_row * columns + there_column)[:, None] * channels + channel[None, :]
            a = _swish(tl.load(first + there, mask=reached[:, None] & these[None, :], other=0.0).to(sum_type))
            of_weight = tl.sum(gradient * a, axis=0)  # (block_channels,)
            sums += tl.where((which == k)[:, None], of_weight[None, :], 0.0)
    place = (tl.program_id(0) * 9 + which)[:, None] * channels + channel[None, :]
    tl.store(partial + place, sums, mask=(which < 9)[:, None] & known[None, :])


@triton.jit
def _backward_of_input(
    dz, u, weight, du, rows, columns, channels, tiles,
    sum_type: tl.constexpr, block_tokens: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    token = tile * block_tokens + tl.arange(0, block_tokens)
    channel = tl.program_id(1) * block_channels + tl.arange(0, block_channels)
    row, column = token // columns, token % columns
    known = channel < channels
    start = image.to(tl.int64) * rows * columns * channels
    da = tl.zeros((block_tokens, block_channels), dtype=sum_type)
    for k in tl.static_range(9):
        # what this token gave with weight k went to the token on the other side
        there_row, there_column = row - (k // 3 - 1), column - (k % 3 - 1)
        inside = (there_row >= 0) & (there_row < rows) & (there_column >= 0) & (there_column < columns)
        there = (there_row * columns + there_column)[:, None] * channels + channel[None, :]
        gradient = tl.load(dz + start + there, mask=inside[:, None] & known[None, :], other=0.0).to(sum_type)
        da += gradient * tl.load(weight + channel * 9 + k, mask=known, other=0.0).to(sum_type)[None, :]
    here = token[:, None] * channels + channel[None, :]
    inside_here = (token < rows * columns)[:, None] & known[None, :]
    slope = _swish_slope(tl.load(u + start + here, mask=inside_here, other=0.0).to(sum_type))
    tl.store(du + start + here, da * slope, mask=inside_here)
