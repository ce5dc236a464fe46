"""Convolutions and matrix products of codes by packed codes, exact in integers.

    S[p, n] = Σ over taps and inputs of (x − x_zero) · (m · c − zero[n]),  m 1, or 2 where zeros are odd multiples of ½

Weights of 1 to 8 bits are unpacked in the kernel, two bytes a code, and both operands centred to signed bytes: products
of tensor cores with sums of 32 bits. What the zeros add follows from the sums of x, taken on the way, and of the codes,
which are packed with the weights. Taps outside of the map count as x_zero. What is made of S is in `lowbit_parts.py`.
Depthwise convolutions have a kernel without tensor cores.

Bytes: x once for each tile of columns and tap (L2 has the taps), packed weights once for each tile of rows, results
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spos_kernels.triton.launch import INTERPRETED, blocks, fixed, kernel, product_tile
from spos_kernels.triton.lowbit_parts import exact_sum, finish, weight_code, x_code

lowbit_counters = 1  # the kernels share no sums


def _fits(configuration: triton.Config, arguments: Mapping[str, Any], shared: int) -> bool:
    m, n, k = (configuration.kwargs[f"BLOCK_{letter}"] for letter in "MNK")
    if configuration.num_stages * k * (m + n) > shared or m * n > 128 * 32 * configuration.num_warps:
        return False
    return bool(m <= max(64, 2 * arguments["pixels"]) and n <= max(64, 2 * arguments["outputs"]))


@kernel(
    [
        product_tile(64, 64, 64, 8, 2),
        product_tile(16, 64, 64, 4, 3, 168),
    ],
    key=["pixels", "inputs", "outputs", "taps", "BITS"],
    fits=_fits,
    fused=False,
)
def lowbit_kernel(
    x, packed, sums, twice_zero, multiplier, bias, residual, y_sums, y, y_codes, pixels, in_height, in_width,
    out_height, out_width, inputs, outputs, taps, kernel_width, stride_h, stride_w, padding_h, padding_w, dilation_h,
    dilation_w, x_stride, row_bytes, scale_groups, x_scale, x_zero, residual_scale, residual_zero, out_scale,
    out_zero, out_most, X_BITS: tl.constexpr, BITS: tl.constexpr, DOUBLED: tl.constexpr, FLOATS: tl.constexpr,
    HAS_SUMS: tl.constexpr, HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, HAS_Y: tl.constexpr,
    HAS_CODES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tiles of pixels by the outputs of a group; k runs over taps and inputs."""
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
    part = size // scale_groups
    half: tl.constexpr = 1 << (BITS - 1)
    x_half: tl.constexpr = 1 << (X_BITS - 1)
    mask = there[:, None] & exists[None, :]
    at = pixel.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for scale_group in range(scale_groups):
        products = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
        x_sum = tl.zeros((BLOCK_M,), tl.int32)
        end = (scale_group + 1) * part
        for first in range(scale_group * part, end, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            tap = k // inputs
            row = first_row[:, None] + (tap // kernel_width * dilation_h)[None, :]
            place = first_column[:, None] + (tap % kernel_width * dilation_w)[None, :]
            inside = there[:, None] & (row >= 0) & (row < in_height) & (place >= 0) & (place < in_width)
            inside &= (k < end)[None, :]
            from_x = (image[:, None] + row * in_width + place) * x_stride + group * inputs + (k % inputs)[None, :]
            code = x_code(x, from_x, inside, x_scale, x_zero, (1 << X_BITS) - 1, FLOATS)
            a = tl.where((k < end)[None, :], code - x_half, 0)
            wanted = (k < end)[:, None] & exists[None, :]
            c = weight_code(packed, column[None, :], k[:, None], wanted, row_bytes, BITS)
            b = tl.where(wanted, c - half, 0).to(tl.int8)
            products = tl.dot(a.to(tl.int8), b, products, out_dtype=tl.int32)
            x_sum += tl.sum(a, 1)
        of = (scale_group * columns + column)[None, :]
        whole = exact_sum(products, x_sum[:, None], sums, twice_zero, of, exists[None, :], part, x_zero,
                          X_BITS, BITS, DOUBLED)  # fmt: skip
        if HAS_SUMS:
            tl.store(y_sums + at, whole, mask=mask)
        else:
            scaled = whole.to(tl.float32) * tl.load(multiplier + of, mask=exists[None, :], other=0.0)
            value = tl.where(scale_group == 0, scaled, value + scaled)
    if not HAS_SUMS:
        finish(value, bias, residual, y, y_codes, at, column[None, :], mask, residual_scale, residual_zero, out_scale,
               out_zero, out_most, HAS_BIAS, RESIDUAL, RELU, HAS_Y, HAS_CODES)  # fmt: skip


@kernel(fixed(BLOCK_P=32, BLOCK_C=64), fused=False)
def lowbit_depthwise_kernel(
    x, packed, sums, twice_zero, multiplier, bias, residual, y_sums, y, y_codes, pixels, in_height, in_width,
    out_height, out_width, channels, taps, kernel_width, stride_h, stride_w, padding_h, padding_w, dilation_h,
    dilation_w, x_stride, row_bytes, x_scale, x_zero, residual_scale, residual_zero, out_scale, out_zero, out_most,
    X_BITS: tl.constexpr, BITS: tl.constexpr, DOUBLED: tl.constexpr, FLOATS: tl.constexpr, HAS_SUMS: tl.constexpr,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, HAS_Y: tl.constexpr, HAS_CODES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One input and one output a group: pixels by channels, tap after tap."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channel < channels
    mask = (pixel < pixels)[:, None] & exists[None, :]
    image = (pixel // (out_height * out_width)).to(tl.int64) * in_height * in_width
    first_row = pixel // out_width % out_height * stride_h - padding_h
    first_column = pixel % out_width * stride_w - padding_w
    half: tl.constexpr = 1 << (BITS - 1)
    x_half: tl.constexpr = 1 << (X_BITS - 1)
    products = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    x_sum = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    for tap in range(taps):
        row = first_row + tap // kernel_width * dilation_h
        place = first_column + tap % kernel_width * dilation_w
        inside = (row >= 0) & (row < in_height) & (place >= 0) & (place < in_width)
        from_x = ((image + row * in_width + place) * x_stride)[:, None] + channel[None, :]
        a = x_code(x, from_x, mask & inside[:, None], x_scale, x_zero, (1 << X_BITS) - 1, FLOATS) - x_half
        c = weight_code(packed, channel, tap, exists, row_bytes, BITS) - half
        products += a * c[None, :]
        x_sum += a
    at = pixel.to(tl.int64)[:, None] * channels + channel[None, :]
    whole = exact_sum(products, x_sum, sums, twice_zero, channel[None, :], exists[None, :], taps, x_zero,
                      X_BITS, BITS, DOUBLED)  # fmt: skip
    if HAS_SUMS:
        tl.store(y_sums + at, whole, mask=mask)
    else:
        value = whole.to(tl.float32) * tl.load(multiplier + channel, mask=exists, other=0.0)[None, :]
        finish(value, bias, residual, y, y_codes, at, channel[None, :], mask, residual_scale, residual_zero, out_scale,
               out_zero, out_most, HAS_BIAS, RESIDUAL, RELU, HAS_Y, HAS_CODES)  # fmt: skip


def lowbit_plan(*arguments: Any, wanted: tuple[int, int, int, int]) -> tuple[int, int, int, int, int, int]:
    """Return body, form, tile, splits, bytes of workspace and the device's capability: there is one way to run a call.

    ValueError where another body, tile or number of splits is asked for.
    """
    body, tile, splits, _ = wanted
    depthwise = _is_depthwise(arguments[10])
    if body not in (-1, 4 if depthwise else 0) or tile or splits:
        raise ValueError("wanted: the Triton kernels choose their tiles by themselves: expected none")
    x: Tensor = arguments[0]
    capability = 0
    if not INTERPRETED:
        major, minor = torch.cuda.get_device_capability(x.device)
        capability = 10 * major + minor
    return (4, 0, 32, 1, 0, capability) if depthwise else (0, 0, 64, 1, 0, capability)


def _is_depthwise(sizes: Sequence[int]) -> bool:
    groups, inputs, outputs = sizes[5:8]
    return groups > 1 and inputs == outputs == 1


def lowbit_conv2d(
    x: Tensor, packed: Tensor, sums: Tensor, twice_zero: Tensor, multiplier: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, y_sums: Tensor | None, y: Tensor | None, y_codes: Tensor | None, sizes: Sequence[int],
    numbers: Sequence[int], scales: Sequence[float | None], relu: bool, centred: bool, *,
    wanted: tuple[int, int, int, int], workspace: Tensor, counters: Tensor, stream: int,
) -> None:  # fmt: skip
    batch, in_height, in_width, out_height, out_width, groups, inputs, outputs = sizes[:8]
    kernel_height, kernel_width, *pairs = sizes[8:]
    x_bits, x_zero, w_bits, doubled, out_zero, out_bits, residual_zero = numbers
    x_scale, residual_scale, out_scale = scales
    if INTERPRETED and x.dtype == torch.uint8 and x.numel() and int(x.max()) >> x_bits:
        raise ValueError("x: has codes of more than x_bits bits")
    pixels, taps = batch * out_height * out_width, kernel_height * kernel_width
    if pixels == 0:
        return
    tensors = (
        x,
        packed,
        sums,
        twice_zero,
        *(x if t is None else t for t in (multiplier, bias, residual, y_sums, y, y_codes)),
    )
    values = (
        1.0 if x_scale is None else x_scale, x_zero, residual_scale or 0.0, residual_zero, out_scale or 1.0, out_zero,
        (1 << out_bits) - 1,
    )  # fmt: skip
    x_stride = x.stride(0) if x.shape[0] > 1 else groups * inputs
    constants = {
        "X_BITS": x_bits,
        "BITS": w_bits,
        "DOUBLED": bool(doubled),
        "FLOATS": x_scale is not None,
        "HAS_SUMS": y_sums is not None,
        "HAS_BIAS": bias is not None,
        "RESIDUAL": 0 if residual is None else 1 if residual_scale is None else 2,
        "RELU": relu,
        "HAS_Y": y is not None,
        "HAS_CODES": y_codes is not None,
    }
    map_sizes = (pixels, in_height, in_width, out_height, out_width)
    if _is_depthwise(sizes):
        lowbit_depthwise_kernel.launch(
            lambda meta: (blocks(pixels, meta["BLOCK_P"]), blocks(groups, meta["BLOCK_C"])),
            *tensors, *map_sizes, groups, taps, kernel_width, *pairs, x_stride, packed.shape[1], *values, **constants,
        )  # fmt: skip
    else:
        lowbit_kernel.launch(
            lambda meta: (blocks(pixels, meta["BLOCK_M"]) * blocks(outputs, meta["BLOCK_N"]), groups),
            *tensors, *map_sizes, inputs, outputs, taps, kernel_width, *pairs, x_stride, packed.shape[1],
            sums.shape[0], *values, **constants,
        )  # fmt: skip
