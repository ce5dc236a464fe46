"""Depthwise convolutions of 3×3, 5×5 and 7×7, NHWC: forward, dgrad and wgrad.

A program has a run of pixels and of channels, which are adjacent in memory: loads and stores are coalesced. The taps
are unrolled; each reads the source again, from L1. wgrad has the taps of a row of the filter side by side, [pixels,
taps, channels], and adds its pixels up; parts of the pixels are added in their order by a second kernel.

Bytes: each map once from memory, halos of tiles from L2. Operations: 2 · k² a pixel and channel, multiply-adds.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spos_kernels.triton.elements import active_width, stored
from spos_kernels.triton.launch import blocks, kernel, width
from spos_kernels.triton.sliced_conv2d import maps
from spos_kernels.triton.sliced_conv2d_wgrad import add_parts_kernel

PIXEL_BLOCKS = [
    triton.Config({"BLOCK_P": p, "BLOCK_C": c}, num_warps=warps, num_stages=1)
    for p, c, warps in ((32, 32, 4), (16, 64, 4))
]


@triton.jit
def source_place(row, tap, padding, size, STRIDE: tl.constexpr, GRADIENT: tl.constexpr):
    """The row of the source that meets row `row` of the destination through a tap, and whether there is one."""
    if GRADIENT:
        scaled = row + padding - tap
        place = scaled // STRIDE
        inside = (scaled >= 0) & (scaled % STRIDE == 0) & (place < size)
    else:
        place = row * STRIDE - padding + tap
        inside = (place >= 0) & (place < size)
    return place, inside


@kernel(PIXEL_BLOCKS, key=["pixels", "channels"])
def convolve_kernel(
    source,
    weight,
    destination,
    active_channels,
    pixels,
    channels,
    source_height,
    source_width,
    height,
    width,
    s_n,
    s_h,
    s_w,
    d_n,
    d_h,
    d_w,
    w_c,
    w_h,
    w_w,
    padding,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    GRADIENT: tl.constexpr,
    ACTIVE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Forward, and dgrad with GRADIENT: the destination is dx then, and the source dy."""
    used = active_width(active_channels, channels, ACTIVE)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    if tl.program_id(1) * BLOCK_C >= used:
        return
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = (pixel // (height * width)).to(tl.int64)
    row = pixel // width % height
    column = pixel % width
    there = (pixel < pixels)[:, None] & (channel < used)[None, :]
    sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for a in tl.static_range(KERNEL):
        in_row, row_inside = source_place(row, a, padding, source_height, STRIDE, GRADIENT)
        for b in tl.static_range(KERNEL):
            in_column, column_inside = source_place(column, b, padding, source_width, STRIDE, GRADIENT)
            at = image * s_n + in_row.to(tl.int64) * s_h + in_column.to(tl.int64) * s_w
            mask = there & (row_inside & column_inside)[:, None]
            value = tl.load(source + at[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            tap = tl.load(weight + channel.to(tl.int64) * w_c + a * w_h + b * w_w, mask=channel < used, other=0.0)
            sums += value * tap.to(tl.float32)[None, :]
    to = image * d_n + row.to(tl.int64) * d_h + column.to(tl.int64) * d_w
    tl.store(destination + to[:, None] + channel[None, :], stored(sums, destination), mask=there)


@kernel(
    [
        triton.Config({"BLOCK_P": p, "BLOCK_C": c}, num_warps=warps, num_stages=1)
        for p, c, warps in ((16, 32, 4), (8, 64, 4))
    ],
    key=["pixels", "channels"],
    restore=["dweight"],
)
def depthwise_wgrad_kernel(
    x,
    dy,
    dweight,
    parts,
    active_channels,
    pixels,
    channels,
    in_height,
    in_width,
    height,
    width,
    splits,
    x_n,
    x_h,
    x_w,
    y_n,
    y_h,
    y_w,
    w_c,
    w_h,
    w_w,
    padding,
    KERNEL: tl.constexpr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row of the filters over a part of the pixels. TAPS: KERNEL, rounded up to a power of two."""
    used = active_width(active_channels, channels, ACTIVE)
    if tl.program_id(0) * BLOCK_C >= used:
        return
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    a = tl.program_id(1)
    split = tl.program_id(2)
    tap = tl.arange(0, TAPS)
    steps = tl.cdiv(pixels, BLOCK_P)
    begin = (steps.to(tl.int64) * split // splits).to(tl.int32) * BLOCK_P
    end = (steps.to(tl.int64) * (split + 1) // splits).to(tl.int32) * BLOCK_P
    sums = tl.zeros((TAPS, BLOCK_C), tl.float32)
    for first in range(begin, end, BLOCK_P):
        pixel = first + tl.arange(0, BLOCK_P)
        image = (pixel // (height * width)).to(tl.int64)
        row = pixel // width % height
        column = pixel % width
        there = (pixel < pixels)[:, None] & (channel < used)[None, :]
        from_y = image * y_n + row.to(tl.int64) * y_h + column.to(tl.int64) * y_w
        gradient = tl.load(dy + from_y[:, None] + channel[None, :], mask=there, other=0.0).to(tl.float32)
        in_row, row_inside = source_place(row, a, padding, in_height, STRIDE, False)
        in_column, column_inside = source_place(column[:, None], tap[None, :], padding, in_width, STRIDE, False)
        from_x = (image * x_n + in_row.to(tl.int64) * x_h)[:, None] + in_column.to(tl.int64) * x_w
        inside = column_inside & row_inside[:, None] & (tap < KERNEL)[None, :]
        value = tl.load(
            x + from_x[:, :, None] + channel[None, None, :], mask=inside[:, :, None] & there[:, None, :], other=0.0
        )
        sums += tl.sum(value.to(tl.float32) * gradient[:, None, :], 0)
    mask = (tap < KERNEL)[:, None] & (channel < used)[None, :]
    if SPLIT:
        size = tl.cast(channels, tl.int64) * KERNEL * KERNEL
        at = (channel * KERNEL * KERNEL)[None, :] + (a * KERNEL + tap)[:, None]
        tl.store(parts + split * size + at, sums, mask=mask)
    else:
        to = dweight + (channel.to(tl.int64) * w_c)[None, :] + (a * w_h + tap * w_w)[:, None]
        if ACCUMULATE:
            sums += tl.load(to, mask=mask, other=0.0).to(tl.float32)
        tl.store(to, stored(sums, dweight), mask=mask)


def _convolve(
    source: Tensor,
    weight: Tensor,
    destination: Tensor,
    stride: int,
    padding: int,
    active: Tensor | None,
    gradient: bool,
) -> None:
    (batch, channels, height, out_width), to_strides = maps(destination)
    (_, _, source_height, source_width), from_strides = maps(source)
    pixels = batch * height * out_width
    if pixels == 0:
        return
    w_c, _, w_h, w_w = weight.stride()
    convolve_kernel.launch(
        lambda meta: (blocks(pixels, meta["BLOCK_P"]), blocks(channels, meta["BLOCK_C"])),
        source, weight, destination, width(active, source), pixels, channels, source_height, source_width,
        height, out_width, *from_strides, *to_strides, w_c, w_h, w_w, padding,
        KERNEL=weight.shape[2], STRIDE=stride, GRADIENT=gradient, ACTIVE=active is not None,
    )  # fmt: skip


def depthwise_conv2d_forward(
    x: Tensor, weight: Tensor, y: Tensor, stride: int, padding: int, active_channels: Tensor | None, stream: int
) -> None:
    _convolve(x, weight, y, stride, padding, active_channels, gradient=False)


def depthwise_conv2d_dgrad(
    dy: Tensor, weight: Tensor, dx: Tensor, stride: int, padding: int, active_channels: Tensor | None, stream: int
) -> None:
    _convolve(dy, weight, dx, stride, padding, active_channels, gradient=True)


def _splits(dy: Tensor, size: int) -> int:
    enough_programs, least_pixels, block = 1024, 128, 32
    (batch, channels, height, out_width), _ = maps(dy)
    programs = size * blocks(channels, block)
    return max(1, min(enough_programs // programs, blocks(batch * height * out_width, least_pixels)))


def depthwise_conv2d_wgrad_workspace(x: Tensor, dy: Tensor, dweight: Tensor, stride: int, padding: int) -> int:
    splits = _splits(dy, dweight.shape[2])
    return 0 if splits == 1 else splits * dweight.numel()


def depthwise_conv2d_wgrad(
    x: Tensor,
    dy: Tensor,
    dweight: Tensor,
    stride: int,
    padding: int,
    accumulate: bool,
    workspace: Tensor,
    active_channels: Tensor | None,
    stream: int,
) -> None:
    (batch, channels, height, out_width), y_strides = maps(dy)
    (_, _, in_height, in_width), x_strides = maps(x)
    size = dweight.shape[2]
    splits = _splits(dy, size)
    w_c, _, w_h, w_w = dweight.stride()
    active = width(active_channels, x)
    depthwise_wgrad_kernel.launch(
        lambda meta: (blocks(channels, meta["BLOCK_C"]), size, splits),
        x, dy, dweight, workspace if splits > 1 else x, active, batch * height * out_width, channels,
        in_height, in_width, height, out_width, splits, *x_strides, *y_strides, w_c, w_h, w_w, padding,
        KERNEL=size, TAPS=4 if size == 3 else 8, STRIDE=stride, ACCUMULATE=accumulate, SPLIT=splits > 1,
        ACTIVE=active_channels is not None,
    )  # fmt: skip
    if splits > 1:
        add_parts_kernel.launch(
            lambda meta: (blocks(dweight.numel(), meta["BLOCK"]),),
            workspace, dweight, active, active, dweight.numel(), splits, 1, channels, 0, w_c, 0, w_h, w_w,
            KERNEL=size, ACCUMULATE=accumulate, ACTIVE_IN=False, ACTIVE_OUT=active_channels is not None,
        )  # fmt: skip
