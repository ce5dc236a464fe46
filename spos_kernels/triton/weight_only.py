"""Convolutions and matrix products of floats by packed weights of 1 to 8 bits, which become floats in the kernel.

    y[p, n] = relu(Σ over taps and inputs of x · scale · (code − zero) + bias[n])

Codes are unpacked, two bytes each, made floats of x's type, and multiplied by tensor cores with sums in float32.

Bytes: x once for each tile of columns and tap (L2 has the taps), packed weights once for each tile of rows, y once.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

from spos_kernels.triton.elements import product, stored
from spos_kernels.triton.launch import blocks, kernel, product_fits, product_tile
from spos_kernels.triton.lowbit_parts import weight_code
from spos_kernels.triton.sliced_conv2d import precision_of


@kernel(
    [
        product_tile(64, 64, 16, 8, 1, 128),
        product_tile(32, 32, 32, 4, 1, 128),
        product_tile(64, 64, 32, 4, 3, 192),
        product_tile(128, 64, 32, 8, 3),
    ],
    key=["pixels", "inputs", "outputs", "taps", "BITS"],
    fits=product_fits("pixels", "outputs", "x"),
)
def weight_only_kernel(
    x,
    packed,
    twice_zero,
    scale,
    bias,
    y,
    pixels,
    in_height,
    in_width,
    out_height,
    out_width,
    inputs,
    outputs,
    taps,
    kernel_width,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    x_stride,
    row_bytes,
    part,
    BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of pixels by the outputs of a group; k runs over taps and inputs, `part` of which share a scale."""
    group = tl.program_id(1).to(tl.int64)
    columns = tl.num_programs(1).to(tl.int64) * outputs
    column_tiles = tl.cdiv(outputs, BLOCK_N)
    pixel = tl.program_id(0) // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.program_id(0) % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    there = pixel < pixels
    exists = own < outputs
    column = group * outputs + own
    image = (pixel // (out_height * out_width)).to(tl.int64) * in_height * in_width
    first_row = pixel // out_width % out_height * stride_h - padding_h
    first_column = pixel % out_width * stride_w - padding_w
    size = taps * inputs
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, size, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        tap = k // inputs
        row = first_row[:, None] + (tap // kernel_width * dilation_h)[None, :]
        place = first_column[:, None] + (tap % kernel_width * dilation_w)[None, :]
        inside = there[:, None] & (row >= 0) & (row < in_height) & (place >= 0) & (place < in_width)
        from_x = (image[:, None] + row * in_width + place) * x_stride + group * inputs + (k % inputs)[None, :]
        a = tl.load(x + from_x, mask=inside & (k < size)[None, :], other=0.0)
        wanted = (k < size)[:, None] & exists[None, :]
        code = weight_code(packed, column[None, :], k[:, None], wanted, row_bytes, BITS)
        of = (k // part)[:, None] * columns + column[None, :]
        zero = tl.load(twice_zero + of, mask=wanted, other=0).to(tl.float32) * 0.5
        factor = tl.load(scale + of, mask=wanted, other=0.0)
        b = stored((code.to(tl.float32) - zero) * factor, x)
        sums = product(a, b, sums, PRECISION, UPCAST)
    if HAS_BIAS:
        sums += tl.load(bias + column, mask=exists, other=0.0)[None, :]
    if RELU:
        sums = tl.where(sums < 0, 0.0, sums)
    at = pixel.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(y + at, stored(sums, y), mask=there[:, None] & exists[None, :])


def weight_only_conv2d(
    x: Tensor,
    packed: Tensor,
    twice_zero: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    y: Tensor,
    sizes: Sequence[int],
    bits: int,
    relu: bool,
    tf32: bool,
    stream: int,
) -> None:
    """x, y: rows of pixels. sizes: as of `lowbit_conv2d`."""
    batch, in_height, in_width, out_height, out_width, groups, inputs, outputs = sizes[:8]
    kernel_height, kernel_width, *pairs = sizes[8:]
    pixels, taps = batch * out_height * out_width, kernel_height * kernel_width
    x_stride = x.stride(0) if x.shape[0] > 1 else groups * inputs
    weight_only_kernel.launch(
        lambda meta: (blocks(pixels, meta["BLOCK_M"]) * blocks(outputs, meta["BLOCK_N"]), groups),
        x, packed, twice_zero, scale, x if bias is None else bias, y,
        pixels, in_height, in_width, out_height, out_width, inputs, outputs, taps, kernel_width, *pairs, x_stride,
        packed.shape[1], taps * inputs // scale.shape[0],
        BITS=bits, HAS_BIAS=bias is not None, RELU=relu, **precision_of(x, tf32),
    )  # fmt: skip
