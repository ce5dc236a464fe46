"""Gradients of slices of a larger weight, NHWC: implicit matrix products over the pixels.

    wgrad     dw[o, i, tap] (+)= Σ over p of dy[p, o] · x[source(p, tap), i]

A gradient is added where it belongs; widths may be int32 in device memory. Parts of the pixels are added in their order
by a second kernel: the same bits in every run.

Bytes: dy and x once for each tile of inputs, of outputs and tap, parts written and read once.
"""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from spos_kernels.triton.elements import active_width, product, stored
from spos_kernels.triton.launch import blocks, fixed, kernel, product_configurations, product_fits, width
from spos_kernels.triton.sliced_conv2d import kernel_of, maps, precision_of


@kernel(
    product_configurations(most_registers=128),
    key=["pixels", "in_channels", "out_channels"],
    restore=["dweight"],
    fits=product_fits("out_channels", "in_channels", "x"),
)
def wgrad_kernel(
    x,
    dy,
    dweight,
    parts,
    active_in,
    active_out,
    pixels,
    in_height,
    in_width,
    out_height,
    out_width,
    in_channels,
    out_channels,
    splits,
    x_n,
    x_h,
    x_w,
    y_n,
    y_h,
    y_w,
    w_group,
    w_o,
    w_i,
    w_h,
    w_w,
    padding,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SPLIT: tl.constexpr,
    ACTIVE_IN: tl.constexpr,
    ACTIVE_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows are channels of dy, columns those of x under one tap, k runs over a part of the pixels."""
    group = tl.program_id(1)
    split = tl.program_id(2)
    used_in = active_width(active_in, in_channels, ACTIVE_IN)
    used_out = active_width(active_out, out_channels, ACTIVE_OUT)
    column_tiles = tl.cdiv(in_channels, BLOCK_N)
    row_tiles = tl.cdiv(out_channels, BLOCK_M)
    number = tl.program_id(0)
    tap = number // (row_tiles * column_tiles)
    first_row = number // column_tiles % row_tiles * BLOCK_M
    first_column = number % column_tiles * BLOCK_N
    if (first_row >= used_out) | (first_column >= used_in):
        return
    output = first_row + tl.arange(0, BLOCK_M)
    channel = first_column + tl.arange(0, BLOCK_N)
    steps = tl.cdiv(pixels, BLOCK_K)
    begin = (steps.to(tl.int64) * split // splits).to(tl.int32) * BLOCK_K
    end = (steps.to(tl.int64) * (split + 1) // splits).to(tl.int32) * BLOCK_K
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(begin, end, BLOCK_K):
        pixel = first + tl.arange(0, BLOCK_K)
        image = (pixel // (out_height * out_width)).to(tl.int64)
        i = pixel // out_width % out_height
        j = pixel % out_width
        row = i * STRIDE - padding + tap // KERNEL
        at = j * STRIDE - padding + tap % KERNEL
        there = pixel < pixels
        inside = there & (row >= 0) & (row < in_height) & (at >= 0) & (at < in_width)
        from_y = dy + image * y_n + i.to(tl.int64) * y_h + j.to(tl.int64) * y_w + group * out_channels
        from_x = x + image * x_n + row.to(tl.int64) * x_h + at.to(tl.int64) * x_w + group * in_channels
        a = tl.load(from_y[None, :] + output[:, None], mask=there[None, :] & (output < used_out)[:, None], other=0.0)
        b = tl.load(from_x[:, None] + channel[None, :], mask=inside[:, None] & (channel < used_in)[None, :], other=0.0)
        sums = product(a, b, sums, PRECISION, UPCAST)
    mask = (output < used_out)[:, None] & (channel < used_in)[None, :]
    if SPLIT:
        size = tl.num_programs(1) * out_channels * in_channels * KERNEL * KERNEL
        at_part = ((group * out_channels + output)[:, None] * in_channels + channel[None, :]) * KERNEL * KERNEL + tap
        tl.store(parts + split.to(tl.int64) * size + at_part, sums, mask=mask)
    else:
        to = dweight + group.to(tl.int64) * w_group + tap // KERNEL * w_h + tap % KERNEL * w_w
        to += (output.to(tl.int64) * w_o)[:, None] + (channel.to(tl.int64) * w_i)[None, :]
        if ACCUMULATE:
            sums += tl.load(to, mask=mask, other=0.0).to(tl.float32)
        tl.store(to, stored(sums, dweight), mask=mask)


@kernel(fixed(BLOCK=256))
def add_parts_kernel(
    parts,
    dweight,
    active_in,
    active_out,
    size,
    splits,
    in_channels,
    out_channels,
    w_group,
    w_o,
    w_i,
    w_h,
    w_w,
    KERNEL: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ACTIVE_IN: tl.constexpr,
    ACTIVE_OUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements of the gradient as the sums of their parts, in order."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    taps: tl.constexpr = KERNEL * KERNEL
    tap = element % taps
    channel = element // taps % in_channels
    output = element // taps // in_channels % out_channels
    group = element // taps // in_channels // out_channels
    mask = (element < size) & (channel < active_width(active_in, in_channels, ACTIVE_IN))
    mask &= output < active_width(active_out, out_channels, ACTIVE_OUT)
    sums = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        sums += tl.load(parts + tl.cast(split, tl.int64) * size + element, mask=mask, other=0.0)
    to = dweight + group.to(tl.int64) * w_group + output.to(tl.int64) * w_o + channel.to(tl.int64) * w_i
    to += tap // KERNEL * w_h + tap % KERNEL * w_w
    if ACCUMULATE:
        sums += tl.load(to, mask=mask, other=0.0).to(tl.float32)
    tl.store(to, stored(sums, dweight), mask=mask)


def _splits(x: Tensor, dy: Tensor, size: int, groups: int) -> int:
    """How many parts of the pixels wgrad adds up: about as many programs as keep a large GPU busy."""
    enough_programs, least_pixels, tile = 512, 256, 64
    (batch, inputs, *_), _ = maps(x)
    (_, outputs, height, out_width), _ = maps(dy)
    programs = groups * size * size * blocks(inputs // groups, tile) * blocks(outputs // groups, tile)
    return max(1, min(enough_programs // programs, blocks(batch * height * out_width, least_pixels)))


def sliced_conv2d_wgrad_workspace(
    x: Tensor, dy: Tensor, dweight: Tensor, out_offset: int, in_offset: int, stride: int, padding: int, groups: int
) -> int:
    size = kernel_of(dweight)[0]
    splits = _splits(x, dy, size, groups)
    return 0 if splits == 1 else splits * x.shape[1] // groups * dy.shape[1] * size * size


def sliced_conv2d_wgrad(
    x: Tensor,
    dy: Tensor,
    dweight: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    accumulate: bool,
    tf32: bool,
    workspace: Tensor,
    active_in_channels: Tensor | None,
    active_out_channels: Tensor | None,
    stream: int,
) -> None:
    (batch, inputs, in_height, in_width), x_strides = maps(x)
    (_, outputs, height, out_width), y_strides = maps(dy)
    in_channels, out_channels, pixels = inputs // groups, outputs // groups, batch * height * out_width
    size, w_o, w_i, w_h, w_w = kernel_of(dweight)
    splits = _splits(x, dy, size, groups)
    target = dweight[out_offset:, in_offset:]
    actives = (width(active_in_channels, x), width(active_out_channels, x))
    is_active = {"ACTIVE_IN": active_in_channels is not None, "ACTIVE_OUT": active_out_channels is not None}
    strides = (out_channels * w_o, w_o, w_i, w_h, w_w)
    wgrad_kernel.launch(
        lambda meta: (
            size * size * blocks(out_channels, meta["BLOCK_M"]) * blocks(in_channels, meta["BLOCK_N"]), groups, splits
        ),
        x, dy, target, workspace if splits > 1 else x, *actives, pixels, in_height, in_width, height, out_width,
        in_channels, out_channels, splits, *x_strides, *y_strides, *strides, padding,
        KERNEL=size, STRIDE=stride, ACCUMULATE=accumulate, SPLIT=splits > 1, **is_active, **precision_of(x, tf32),
    )  # fmt: skip
    if splits > 1:
        elements = in_channels * outputs * size * size
        add_parts_kernel.launch(
            lambda meta: (blocks(elements, meta["BLOCK"]),),
            workspace, target, *actives, elements, splits, in_channels, out_channels, *strides,
            KERNEL=size, ACCUMULATE=accumulate, **is_active,
        )  # fmt: skip
