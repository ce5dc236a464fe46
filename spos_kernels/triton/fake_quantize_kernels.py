"""Fake quantization, its kernels: one read and one write of every element, with sums for each channel.

    pact, lsq   y = s · round(clamp(x / s, low, high))
    dorefa      y = (2 · round(n · (tanh(x) / 2m + 1/2)) − n) / n,  m = max |tanh(x)|

Tensors are seen as in memory, `outer` times `channels` times `inner` adjacent elements. Elementwise passes go straight
through memory. Sums go in two shapes: down the rows of [outer, channels · inner] where runs are short, along the runs
where they are long. Each program leaves its sums as a part; a second kernel adds a channel's parts in float64, always
in the same order.

Bytes: an element of fp32 costs 8 forward, 5 for codes, 12 backward; of fp16 and bf16 half of that, codes 3. Nothing is
contracted to multiply-adds that the source does not write so: codes, forward and backward agree on every element.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spos_kernels.triton.elements import rounded, stored
from spos_kernels.triton.launch import fixed, kernel

SMALLEST_NORMAL = tl.constexpr(1.17549435e-38)


@triton.jit
def tanh(x):
    """To two units in the last place (Cephes' tanhf: a polynomial for small x, else by the exponential)."""
    size = tl.abs(x)
    square = x * x
    small = tl.fma(square, -5.70498872745e-3, 2.06390887954e-2)
    small = tl.fma(square, small, -5.37397155531e-2)
    small = tl.fma(square, small, 1.33314422036e-1)
    small = tl.fma(square, small, -3.33332819422e-1)
    small = tl.fma(small * square, x, x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * tl.minimum(size, 20.0, propagate_nan=tl.PropagateNan.ALL)) + 1.0)
    return tl.where(size < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def coefficients(scale, zero_point, channel, lowest, highest, mask, METHOD: tl.constexpr, HAS_ZERO: tl.constexpr):
    """The divisor, the bounds of x / divisor, and what decides over dy: pact's clip, dorefa's 1 / m."""
    value = tl.load(scale + channel, mask=mask, other=1.0)
    zero = tl.zeros_like(value)
    if HAS_ZERO:
        zero = tl.load(zero_point + channel, mask=mask, other=0).to(tl.float32)
    divisor = value
    bound = value
    if METHOD == "pact":
        divisor = tl.div_rn(value, tl.zeros_like(value) + highest)
    if METHOD == "dorefa":
        zeros = value < SMALLEST_NORMAL
        divisor = tl.where(zeros, 0.0, tl.div_rn(tl.zeros_like(value) + 0.5, value))
        bound = tl.where(zeros, 0.0, tl.div_rn(tl.zeros_like(value) + 1.0, value))
    return divisor, lowest - zero, highest - zero, bound


@triton.jit
def code_of(x, divisor, low, high, levels, METHOD: tl.constexpr):
    """The integer that an element is rounded to: the code, less the zero point. NaN stays NaN."""
    if METHOD == "dorefa":
        return rounded(levels * tl.fma(tanh(x), divisor, 0.5))
    v = tl.div_rn(x, divisor)
    return rounded(tl.where(v < low, low, tl.where(v > high, high, v)))


@kernel(fixed(BLOCK=1024), fused=False)
def quantize_kernel(
    x,
    scale,
    zero_point,
    result,
    size,
    channels,
    inner,
    lowest,
    highest,
    METHOD: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y, or with CODES the codes."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    channel = at // inner % channels
    lowest = tl.cast(lowest, tl.float32)
    highest = tl.cast(highest, tl.float32)
    divisor, low, high, _ = coefficients(scale, zero_point, channel, lowest, highest, mask, METHOD, HAS_ZERO)
    levels = highest - lowest
    code = code_of(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), divisor, low, high, levels, METHOD)
    if CODES:
        if METHOD != "dorefa":
            code += lowest - low
        code = tl.where(code > lowest, code, lowest)  # NaN: the lowest
        tl.store(result + at, code.to(tl.int32).to(result.dtype.element_ty), mask=mask)
    else:
        if METHOD == "dorefa":
            y = tl.div_rn(tl.fma(tl.zeros_like(code) + 2.0, code, -levels), tl.zeros_like(code) + levels)
        else:
            y = code * divisor
        tl.store(result + at, stored(y, result), mask=mask)


@triton.jit
def backward_of(x, dy, divisor, low, high, bound, METHOD: tl.constexpr):
    """dx, and the element's term of the scale's gradient."""
    if METHOD == "dorefa":
        t = tanh(x)
        return dy * bound * tl.fma(-t, t, 1.0), tl.zeros_like(dy)
    if METHOD == "pact":
        return tl.where((x > 0) & (x < bound), dy, 0.0), tl.where(x >= bound, dy, 0.0)
    v = tl.div_rn(x, divisor)
    coefficient = tl.where(v <= low, low, tl.where(v >= high, high, rounded(v) - v))
    return tl.where((v >= low) & (v <= high), dy, 0.0), dy * coefficient


@triton.jit
def visit(
    x, dy, scale, zero_point, dx, at, channel, mask, lowest, highest,
    METHOD: tl.constexpr, HAS_ZERO: tl.constexpr, MAXIMUM: tl.constexpr, HAS_DX: tl.constexpr,
):  # fmt: skip
    """Elements of a pass with sums: their terms, as the bits of the magnitude for MAXIMUM."""
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if MAXIMUM:
        term = tl.abs(value).to(tl.int32, bitcast=True)  # ordered as the magnitudes are; NaN is the largest
    else:
        bottom = tl.cast(lowest, tl.float32)
        top = tl.cast(highest, tl.float32)
        divisor, low, high, bound = coefficients(scale, zero_point, channel, bottom, top, mask, METHOD, HAS_ZERO)
        gradient = tl.load(dy + at, mask=mask, other=0.0).to(tl.float32)
        to_x, term = backward_of(value, gradient, divisor, low, high, bound, METHOD)
        if HAS_DX:
            tl.store(dx + at, stored(to_x, dx), mask=mask)
        term = tl.where(mask, term, 0.0)
    return term


@kernel(fixed(ROWS=16, BLOCK=64), fused=False)
def columns_kernel(
    x,
    dy,
    scale,
    zero_point,
    dx,
    parts,
    rows,
    period,
    inner,
    rows_of_program,
    lowest,
    highest,
    METHOD: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    MAXIMUM: tl.constexpr,
    HAS_DX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Down the rows of [outer, channels · inner]: a part for each group of rows and each column."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = (column // inner)[None, :]
    first = tl.program_id(1).to(tl.int64) * rows_of_program
    last = tl.minimum(first + rows_of_program, rows)
    total = tl.zeros((ROWS, BLOCK), tl.int32 if MAXIMUM else tl.float32)
    for begin in range(first, last, ROWS):
        row = begin + tl.arange(0, ROWS)
        mask = (row < last)[:, None] & (column < period)[None, :]
        at = row.to(tl.int64)[:, None] * period + column[None, :]
        term = visit(x, dy, scale, zero_point, dx, at, channel, mask, lowest, highest,
                     METHOD, HAS_ZERO, MAXIMUM, HAS_DX)  # fmt: skip
        if MAXIMUM:
            total = tl.maximum(total, term)
        else:
            total += term
    of_column = tl.max(total, 0) if MAXIMUM else tl.sum(total, 0)
    to = parts + tl.program_id(1).to(tl.int64) * period + column
    tl.store(to, of_column.to(tl.float32, bitcast=True) if MAXIMUM else of_column, mask=column < period)


@kernel(fixed(BLOCK=1024), fused=False)
def runs_kernel(
    x,
    dy,
    scale,
    zero_point,
    dx,
    parts,
    outer,
    channels,
    inner,
    lowest,
    highest,
    METHOD: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    MAXIMUM: tl.constexpr,
    HAS_DX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Along the runs: a part for each program's share of a channel's run, all of its runs together."""
    channel = tl.program_id(0)
    within = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = within < inner
    channels_of_all = channel + tl.zeros((BLOCK,), tl.int32)
    total = tl.zeros((BLOCK,), tl.int32 if MAXIMUM else tl.float32)
    for run in range(outer):
        at = (tl.cast(run, tl.int64) * channels + channel) * inner + within
        term = visit(x, dy, scale, zero_point, dx, at, channels_of_all, mask, lowest, highest,
                     METHOD, HAS_ZERO, MAXIMUM, HAS_DX)  # fmt: skip
        if MAXIMUM:
            total = tl.maximum(total, term)
        else:
            total += term
    result = tl.max(total, 0) if MAXIMUM else tl.sum(total, 0)
    to = parts + tl.cast(channel, tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(to, result.to(tl.float32, bitcast=True) if MAXIMUM else result)


@kernel(fixed(BLOCK=256), fused=False)
def finish_kernel(
    parts,
    result,
    outer,
    stride,
    inner,
    factor,
    MAXIMUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A channel's parts, `outer` times `inner` of them with `stride` from one of the outer to the next, as one."""
    channel = tl.program_id(0)
    count = outer * inner
    total = tl.zeros((BLOCK,), tl.int32 if MAXIMUM else tl.float64)
    for first in range(0, count, BLOCK):
        number = first + tl.arange(0, BLOCK)
        at = (number // inner).to(tl.int64) * stride + tl.cast(channel, tl.int64) * inner + number % inner
        part = tl.load(parts + at, mask=number < count, other=0.0)
        if MAXIMUM:
            total = tl.maximum(total, part.to(tl.int32, bitcast=True))
        else:
            total += part.to(tl.float64)
    if MAXIMUM:
        tl.store(result + channel, tanh(tl.max(total, 0).to(tl.float32, bitcast=True)))
    else:
        tl.store(result + channel, (tl.sum(total, 0) * factor).to(tl.float32))
