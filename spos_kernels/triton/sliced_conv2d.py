"""Convolutions with a slice of a larger weight, NHWC: implicit matrix products.

    forward   y[p, o]  = Σ over taps, i of x[source(p, tap), i] · w[o, i, tap] (+ bias[o])
    dgrad     dx[p, i] = Σ over taps, o of dy[source(p, tap), o] · w[o, i, tap]

Slices are pointers and widths: nothing of a weight is copied. Widths may be int32 in device memory, so that a captured
graph trains any width. At stride 2 the pixels of dx are taken in four classes of one parity each, which meet the same
taps: no product is with a zero. The gradient of the weight is in `sliced_conv2d_wgrad.py`.

Bytes: x once for each tile of outputs and tap (L2 has the taps), the slice of w once for each tile of pixels, y once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from spos_kernels.triton.elements import active_width, product, stored
from spos_kernels.triton.launch import INTERPRETED, blocks, kernel, product_configurations, product_fits, width


@kernel(
    product_configurations(),
    key=["most_pixels", "channels", "columns", "most_taps"],
    fits=product_fits("most_pixels", "columns", "source"),
)
def rows_kernel(
    source,
    weight,
    bias,
    destination,
    active_channels,
    active_columns,
    batch,
    source_height,
    source_width,
    height,
    width,
    most_pixels,
    channels,
    columns,
    most_taps,
    s_n,
    s_h,
    s_w,
    d_n,
    d_h,
    d_w,
    w_group,
    w_channel,
    w_column,
    w_h,
    w_w,
    padding,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    GRADIENT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVE_CHANNELS: tl.constexpr,
    ACTIVE_COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Forward and dgrad: rows are pixels of the destination, k runs over taps and channels of the source."""
    group = tl.program_id(1)
    of_class = tl.program_id(2)
    # Destination pixel (i, j) of a class is row first + step · i; tap t of it meets source row origin + move · i + sign
    # · t, and is row tap_first + tap_step · t of the weight.
    step: tl.constexpr = STRIDE if GRADIENT else 1
    move: tl.constexpr = 1 if GRADIENT else STRIDE
    sign: tl.constexpr = -1 if GRADIENT else 1
    if GRADIENT:
        parity_h = of_class // STRIDE
        parity_w = of_class % STRIDE
        first_h = (parity_h + STRIDE * KERNEL - padding) % STRIDE
        first_w = (parity_w + STRIDE * KERNEL - padding) % STRIDE
        origin_h = (first_h + padding - parity_h) // STRIDE
        origin_w = (first_w + padding - parity_w) // STRIDE
        taps_h = (KERNEL - parity_h + STRIDE - 1) // STRIDE
        taps_w = (KERNEL - parity_w + STRIDE - 1) // STRIDE
    else:
        parity_h = 0
        parity_w = 0
        first_h = 0
        first_w = 0
        origin_h = -padding
        origin_w = -padding
        taps_h = KERNEL
        taps_w = KERNEL
    class_height = (height - first_h + step - 1) // step
    class_width = (width - first_w + step - 1) // step
    pixels = batch * class_height * class_width
    used_columns = active_width(active_columns, columns, ACTIVE_COLUMNS)
    used_channels = active_width(active_channels, channels, ACTIVE_CHANNELS)
    column_tiles = tl.cdiv(columns, BLOCK_N)
    first_row = tl.program_id(0) // column_tiles * BLOCK_M
    first_column = tl.program_id(0) % column_tiles * BLOCK_N
    if (first_row >= pixels) | (first_column >= used_columns):
        return

    pixel = first_row + tl.arange(0, BLOCK_M)
    column = first_column + tl.arange(0, BLOCK_N)
    in_row = tl.arange(0, BLOCK_K)
    image = pixel // (class_height * class_width)
    i = pixel // class_width % class_height
    j = pixel % class_width
    from_image = source + image.to(tl.int64) * s_n + group * channels
    of_column = weight + group.to(tl.int64) * w_group + column.to(tl.int64) * w_column
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    channel_steps = tl.cdiv(used_channels, BLOCK_K)
    for number in range(taps_h * taps_w * channel_steps):
        tap = number // channel_steps
        tap_h = tap // taps_w
        tap_w = tap % taps_w
        channel = number % channel_steps * BLOCK_K + in_row
        row = origin_h + move * i + sign * tap_h
        at = origin_w + move * j + sign * tap_w
        inside = (pixel < pixels) & (row >= 0) & (row < source_height) & (at >= 0) & (at < source_width)
        a = tl.load(
            (from_image + row.to(tl.int64) * s_h + at.to(tl.int64) * s_w)[:, None] + channel[None, :],
            mask=inside[:, None] & (channel < used_channels)[None, :],
            other=0.0,
        )
        of_tap = (parity_h + step * tap_h) * w_h + (parity_w + step * tap_w) * w_w
        b = tl.load(
            of_column[None, :] + (channel.to(tl.int64) * w_channel + of_tap)[:, None],
            mask=(channel < used_channels)[:, None] & (column < used_columns)[None, :],
            other=0.0,
        )
        sums = product(a, b, sums, PRECISION, UPCAST)
    if HAS_BIAS:
        added = tl.load(bias + group * columns + column, mask=column < used_columns, other=0.0)
        sums += added.to(tl.float32)[None, :]
    to_row = (first_h + step * i).to(tl.int64)
    to_at = (first_w + step * j).to(tl.int64)
    to = destination + image.to(tl.int64) * d_n + to_row * d_h + to_at * d_w + group * columns
    tl.store(
        to[:, None] + column[None, :],
        stored(sums, destination),
        mask=(pixel < pixels)[:, None] & (column < used_columns)[None, :],
    )


def maps(tensor: Tensor) -> tuple[tuple[int, int, int, int], tuple[int, int, int]]:
    """Return the sizes of maps, and their strides but for the channels'; of a matrix, those of maps of one pixel."""
    if tensor.ndim == 2:
        return (tensor.shape[0], tensor.shape[1], 1, 1), (tensor.stride(0), 0, 0)
    n, _, h, w = tensor.stride()
    return tuple(tensor.shape), (n, h, w)  # type: ignore[return-value]


def kernel_of(weight: Tensor) -> tuple[int, int, int, int, int]:
    """Return the kernel's size, and the strides of outputs, inputs, rows and columns."""
    if weight.ndim == 2:
        return 1, *weight.stride(), 0, 0  # type: ignore[return-value]
    return weight.shape[2], *weight.stride()  # type: ignore[return-value]


def precision_of(x: Tensor, tf32: bool) -> dict[str, Any]:
    return {
        "PRECISION": "tf32" if tf32 else "ieee",
        "UPCAST": INTERPRETED and x.dtype is torch.bfloat16,
    }


def sliced_conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    tf32: bool,
    active_in_channels: Tensor | None,
    active_out_channels: Tensor | None,
    stream: int,
) -> None:
    (batch, inputs, in_height, in_width), x_strides = maps(x)
    (_, outputs, height, out_width), y_strides = maps(y)
    channels, columns, pixels = inputs // groups, outputs // groups, batch * height * out_width
    if pixels == 0:
        return
    size, w_o, w_i, w_h, w_w = kernel_of(weight)
    rows_kernel.launch(
        lambda meta: (blocks(pixels, meta["BLOCK_M"]) * blocks(columns, meta["BLOCK_N"]), groups, 1),
        x, weight[out_offset:, in_offset:], x if bias is None else bias[out_offset:], y,
        width(active_in_channels, x), width(active_out_channels, x),
        batch, in_height, in_width, height, out_width, pixels, channels, columns, size * size, *x_strides, *y_strides,
        columns * w_o, w_i, w_o, w_h, w_w, padding,
        KERNEL=size, STRIDE=stride, GRADIENT=False, HAS_BIAS=bias is not None,
        ACTIVE_CHANNELS=active_in_channels is not None, ACTIVE_COLUMNS=active_out_channels is not None,
        **precision_of(x, tf32),
    )  # fmt: skip


def sliced_conv2d_dgrad(
    dy: Tensor,
    weight: Tensor,
    dx: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    tf32: bool,
    active_in_channels: Tensor | None,
    active_out_channels: Tensor | None,
    stream: int,
) -> None:
    (batch, inputs, height, in_width), x_strides = maps(dx)
    (_, outputs, out_height, out_width), y_strides = maps(dy)
    channels, columns = outputs // groups, inputs // groups
    size, w_o, w_i, w_h, w_w = kernel_of(weight)
    pixels = batch * blocks(height, stride) * blocks(in_width, stride)  # of the largest class
    if pixels == 0:
        return
    rows_kernel.launch(
        lambda meta: (blocks(pixels, meta["BLOCK_M"]) * blocks(columns, meta["BLOCK_N"]), groups, stride * stride),
        dy, weight[out_offset:, in_offset:], dy, dx,
        width(active_out_channels, dy), width(active_in_channels, dy),
        batch, out_height, out_width, height, in_width, pixels, channels, columns, blocks(size, stride) ** 2,
        *y_strides, *x_strides, channels * w_o, w_o, w_i, w_h, w_w, padding,
        KERNEL=size, STRIDE=stride, GRADIENT=True, HAS_BIAS=False,
        ACTIVE_CHANNELS=active_out_channels is not None, ACTIVE_COLUMNS=active_in_channels is not None,
        **precision_of(dy, tf32),
    )  # fmt: skip
