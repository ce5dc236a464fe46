"""What products of codes have in common: codes of x and of weights, the exact sum, and what is made of that.

S is what `lowbit.py` says. Then, step by step,

    y = relu(float(S) · multiplier[n] + bias[n] + residual),   code = clamp(round(y / out_scale) + out_zero)

Each step is rounded by itself: nothing is contracted.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spos_kernels.triton.elements import rounded, stored


@triton.jit
def code_of(value, scale, zero, most):
    """clamp(round(value / scale) + zero, 0, most), half to even; NaN is 0."""
    steps = tl.div_rn(value, tl.zeros_like(value) + scale)
    low = tl.cast(-zero, tl.float32)
    high = tl.cast(most - zero, tl.float32)
    inside = tl.where(steps > low, tl.where(steps < high, steps, high), low)  # NaN is no larger than anything
    return rounded(inside).to(tl.int32) + zero


@triton.jit
def x_code(x, at, mask, scale, zero, most, FLOATS: tl.constexpr):
    """Codes of x, of floats on the way; x_zero where `mask` is false."""
    if FLOATS:
        code = code_of(tl.load(x + at, mask=mask, other=0.0).to(tl.float32), scale, zero, most)
    else:
        code = tl.load(x + at, mask=mask, other=0).to(tl.int32)
    return tl.where(mask, code, zero)


@triton.jit
def weight_code(packed, row, k, mask, row_bytes, BITS: tl.constexpr):
    """Code k of a row: a stream of bits in which it may begin anywhere and end in the next byte."""
    bit = k * BITS
    byte = bit // 8
    at = row * row_bytes + byte
    low = tl.load(packed + at, mask=mask, other=0).to(tl.int32)
    high = tl.load(packed + at + 1, mask=mask & (byte + 1 < row_bytes), other=0).to(tl.int32)
    return ((low | high << 8) >> bit % 8) & ((1 << BITS) - 1)


@triton.jit
def exact_sum(
    products, x_sum, sums, twice_zero, at, mask, count, x_zero, X_BITS: tl.constexpr, BITS: tl.constexpr,
    DOUBLED: tl.constexpr,
):  # fmt: skip
    """S of sums of centred codes, X = x − 2^(x_bits − 1) and C = c − 2^(bits − 1), over `count` terms."""
    times: tl.constexpr = 2 if DOUBLED else 1
    half: tl.constexpr = 1 << (BITS - 1)
    zero = tl.load(twice_zero + at, mask=mask, other=0).to(tl.int64)
    if not DOUBLED:
        zero = zero // 2
    c_sum = tl.load(sums + at, mask=mask, other=0).to(tl.int64) - tl.cast(count, tl.int64) * half
    beside_x = tl.cast((1 << (X_BITS - 1)) - x_zero, tl.int64)
    beside_c = times * half - zero
    whole = products.to(tl.int64) * times + x_sum.to(tl.int64) * beside_c
    return whole + beside_x * (times * c_sum + count * beside_c)


@triton.jit
def finish(
    value, bias, residual, y, y_codes, at, column, mask, residual_scale, residual_zero, out_scale, out_zero, out_most,
    HAS_BIAS: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, HAS_Y: tl.constexpr, HAS_CODES: tl.constexpr,
):  # fmt: skip
    """What is made of float(S) · multiplier. RESIDUAL: 0 for none, 1 for floats, 2 for codes."""
    if HAS_BIAS:
        value += tl.load(bias + column, mask=mask, other=0.0)
    if RESIDUAL == 1:
        value += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL == 2:
        code = tl.load(residual + at, mask=mask, other=0).to(tl.int32) - residual_zero
        value += code.to(tl.float32) * residual_scale
    if RELU:
        value = tl.where(value < 0, 0.0, value)
    if HAS_Y:
        tl.store(y + at, stored(value, y), mask=mask)
    if HAS_CODES:
        tl.store(y_codes + at, code_of(value, out_scale, out_zero, out_most).to(tl.uint8), mask=mask)
